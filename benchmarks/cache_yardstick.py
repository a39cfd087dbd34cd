"""Cache benchmark · one process of the yardstick · GPTCache with sqlite and faiss, in-process, as its README shows it.

    python -m benchmarks.cache_yardstick FOLDER fill        questions.json and vectors.npy → its data files
    python -m benchmarks.cache_yardstick FOLDER measure     asked.json (lists of [asked, right]) → one JSON line
    python -m benchmarks.cache_yardstick FOLDER judge       cosines.json → what its default evaluation says to each

The embedder is ours, on the same file. Defaults otherwise, but for: room for all entries (default 1000), and no count
of tokens (it needs tiktoken's file from the network).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

NEEDED = ("gptcache", "faiss", "sqlalchemy")
ROOM = 1_000_000
BATCH = 1_000
MODEL_FILE = "embedder"  # holds the embedder's directory


def main(folder: Path, role: str) -> None:
    # DANGER: GPTCache runs pip by itself for what it misses.
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
    print(json.dumps({"fill": _fill, "measure": _measure, "judge": _judge}[role](folder)), flush=True)


def _cache(folder: Path) -> Any:
    from gptcache import Cache, Config
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation import SearchDistanceEvaluation

    from metamusesd.cache.base import DIMENSION
    from metamusesd.cache.embedder import FastEmbedder

    embedder = FastEmbedder(Path((folder / MODEL_FILE).read_text()), 1)
    scalars = CacheBase("sqlite", sql_url=f"sqlite:///{folder / 'gptcache.db'}")
    index = VectorBase("faiss", dimension=DIMENSION, index_path=str(folder / "faiss.index"))
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: embedder.embed([text])[0],
        data_manager=get_data_manager(scalars, index, max_size=ROOM),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(enable_token_counter=False),
    )
    return cache


def _fill(folder: Path) -> dict[str, Any]:
    """Each question is its own answer."""
    import numpy as np

    cache, vectors = _cache(folder), np.load(folder / "vectors.npy")
    questions = json.loads((folder / "questions.json").read_text("utf-8"))
    for first in range(0, len(questions), BATCH):
        some = questions[first : first + BATCH]
        chosen = [vectors[first + n] for n in range(len(some))]
        cache.data_manager.import_data(some, some, chosen, [None] * len(some))
    cache.flush()
    return {"entries": len(questions)}


def _measure(folder: Path) -> dict[str, Any]:
    from gptcache.adapter.api import get

    cache, figures = _cache(folder), dict[str, Any](version=f"GPTCache {version('gptcache')}")
    asked = json.loads((folder / "asked.json").read_text("utf-8"))
    get("something else, to warm up", cache_obj=cache)
    for name, questions in asked.items():
        took_ms, answers = [], []
        for question, _ in questions:
            began_s = time.perf_counter()
            answers.append(get(question, cache_obj=cache))
            took_ms.append((time.perf_counter() - began_s) * 1000)
        took_ms.sort()
        figures[f"{name}_p50"], figures[f"{name}_p99"] = (took_ms[int(len(took_ms) * share)] for share in (0.5, 0.99))
        right = sum(answer == wanted for answer, (_, wanted) in zip(answers, questions, strict=True))
        figures[f"{name}_share"] = sum(answer is not None for answer in answers) / len(answers)
        figures[f"{name}_wrong"] = sum(answer is not None for answer in answers) - right
    return figures


def _judge(folder: Path) -> dict[str, Any]:
    """As adapter.adapt() decides: the squared distance of unit vectors, its rank, the threshold on the rank's range."""
    from gptcache import Config
    from gptcache.similarity_evaluation import SearchDistanceEvaluation

    evaluation, threshold = SearchDistanceEvaluation(), Config(enable_token_counter=False).similarity_threshold
    least, most = evaluation.range()
    cosines = json.loads((folder / "cosines.json").read_text())
    ranks = [evaluation.evaluation({}, {"search_result": (2 - 2 * cosine, None)}) for cosine in cosines]
    return {
        "version": f"GPTCache {version('gptcache')}",
        "hits": [rank >= (most - least) * threshold for rank in ranks],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
