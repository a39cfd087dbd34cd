"""Stage 8 · worker · what a step costs, learnt from what steps did cost. All in seconds.

`decode_s[n]` is measured once at load for batches of n sequences; `drift` follows how much dearer steps have become
since (a longer KV cache, a busy neighbour). A prompt chunk of n tokens costs

    chunk_s · drift  +  n · (prefill_s · drift  +  attention_s · past)

where `past` tokens of its sequence have KV already. Without the fixed part small chunks would look dear, become smaller
still, and starve a prompt; without the attention part a long prompt would spoil the estimates for short ones.
llama.cpp's flash attention on a CPU is twice as quick from 64 rows on, so `attention_s` is kept apart for small and
large chunks.

Decoding n sequences at once is not always the quickest way to get n tokens: on one core, some weight formats have a
quick path for one token and a slow one for a few. So `split` says into which parts to cut a decode batch; with `single`
each sequence is a part of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LARGE_CHUNK = 64  # tokens from which a chunk counts as large
FAR = 256  # past tokens from which a chunk tells something about attention
MOST_CUT = 4  # sequences
WEIGHT = 0.2  # of the newest observation in a moving average


@dataclass(slots=True)
class Rates:
    """The cost model of one engine. Mutated by its step thread only."""

    single: bool = False
    decode_s: list[float] = field(default_factory=lambda: [0.0, 0.02])  # index: sequences in the batch
    chunk_s: float = 0.01
    prefill_s: float = 0.005
    drift: float = 1.0
    prefill_drift: float = 1.0
    attention_s: list[float] = field(default_factory=lambda: [5e-6, 5e-6])  # per token and past token: small, large
    tokens_per_s: float = 0.0
    parts: list[tuple[int, ...]] = field(default_factory=lambda: [(), (1,)])

    def decode_cost_s(self, count: int) -> float:
        """The expected time to decode `count` sequences, cut in the best way."""
        return self.drift * sum(self._table_s(part) for part in self.split(count))

    def split(self, count: int) -> tuple[int, ...]:
        """The sizes of the decode batches that together serve `count` sequences quickest."""
        if self.single:
            return (1,) * count
        return self.parts[count] if count < len(self.parts) else (count,)

    def saw_decode(self, count: int, took_s: float) -> None:
        """A step without prefill took `took_s` for `count` sequences."""
        expected = sum(self._table_s(part) for part in self.split(count))
        self.drift += WEIGHT * (took_s / expected - self.drift)
        self.tokens_per_s += WEIGHT * (count / took_s - self.tokens_per_s)

    def token_cost_s(self, past: int, large: bool) -> float:
        """The expected time that one more prompt token adds, after `past` tokens, in a small or a large chunk."""
        return self.prefill_s * self.prefill_drift + self.attention_s[large] * past

    def saw_prefill(self, tokens: int, past: int, decodes: int, took_s: float, mixed: bool) -> None:
        """A step took `took_s`, with `tokens` of a prompt after `past` others of it, beside `decodes` sequences.

        `mixed`: they were one batch.
        """
        plain = tokens * self.prefill_s + (0.0 if decodes and mixed else self.chunk_s)
        actual = took_s - (self.decode_cost_s(decodes) if decodes else 0.0)
        if past < FAR:
            self.prefill_drift += WEIGHT * (max(actual / plain, 0.2) - self.prefill_drift)
            return
        each = (actual - plain * self.prefill_drift) / (tokens * past)
        large = tokens >= LARGE_CHUNK
        self.attention_s[large] += WEIGHT * (max(each, 0.0) - self.attention_s[large])

    @property
    def prompt_tokens_per_s(self) -> float:
        """How quickly a long prompt is computed when nothing else runs."""
        return 1.0 / (self.prefill_s * self.prefill_drift)

    def calibrate(self, decode_s: dict[int, float], chunks_s: dict[int, float], most: int) -> None:
        """Take the load-time measurements by size: seconds of decode batches (1 among them), of two prompt chunks."""
        self.decode_s = [0.0] + [interpolate(decode_s, size) for size in range(1, most + 1)]
        self.parts = best_parts(self.decode_s)
        small, large = min(chunks_s), max(chunks_s)
        slope = (chunks_s[large] - chunks_s[small]) / max(large - small, 1)
        self.prefill_s = slope if slope > 0 else chunks_s[large] / large
        self.chunk_s = max(0.0, chunks_s[small] - small * self.prefill_s)
        self.attention_s = [self.prefill_s / 1000] * 2

    def _table_s(self, size: int) -> float:
        table = self.decode_s
        return table[size] if size < len(table) else table[-1] * size / (len(table) - 1)


def interpolate(measured_s: dict[int, float], size: int) -> float:
    """The time for `size`, between or beyond the sizes that were measured."""
    below = max(known for known in measured_s if known <= size)
    above = min((known for known in measured_s if known >= size), default=0)
    if not above:
        return measured_s[below] * size / below
    if above == below:
        return measured_s[below]
    share = (size - below) / (above - below)
    return measured_s[below] + share * (measured_s[above] - measured_s[below])


def best_parts(cost_s: list[float], gain: float = 0.85) -> list[tuple[int, ...]]:
    """For each count the quickest way to cut it into batches.

    A cut must save 15 %, and only small counts are cut: on a busy host the measurements of larger batches come out too
    dear, and a wrong cut would cost more than a right one saves.
    """
    best: list[tuple[int, ...]] = [()]
    total = [0.0]
    for count in range(1, len(cost_s)):
        cuts = [(total[count - part] + cost_s[part], part) for part in range(1, count)]
        quickest, part = min(cuts, default=(cost_s[count], count))
        if count <= MOST_CUT and quickest < cost_s[count] * gain:
            total.append(quickest)
            best.append(tuple(sorted((part, *best[count - part]), reverse=True)))
        else:
            total.append(cost_s[count])
            best.append((count,))
    return best
