"""Stage 8 · vectors process · embed jobs: texts to vectors, behind everybody who looks something up."""

from __future__ import annotations

import msgspec

from metamusesd.cache.vectorizer import Read, Vectorizer
from metamusesd.errors import EmbedderFailed
from metamusesd.wire import Embed, Embedded

DIGITS = 7  # a float32 has no more


async def embedded(vectorizer: Vectorizer, question: Embed) -> Embedded:
    """The answer. Raises EmbedderFailed."""
    reads = [read for read in await vectorizer.vectors(question.texts, question.priority) if isinstance(read, Read)]
    rows = [[round(float(each), DIGITS) for each in read.vector] for read in reads if read.vector is not None]
    if len(rows) < len(question.texts):
        raise EmbedderFailed("the embedder is being closed")
    cut = [index for index, read in enumerate(reads) if read.cut]
    return Embedded(question.handle, msgspec.json.encode(rows), cut, vectorizer.identity, vectorizer.window)
