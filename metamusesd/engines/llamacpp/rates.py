"""Stage 8 · worker · what a step costs, learnt from what steps did cost.

`decode_s[n]` is measured once at load for batches of n sequences; `drift` follows how much dearer steps have become
since (a longer KV cache, a busy neighbour). A prompt chunk costs `chunk_s` for being one, unless it rides on a decode batch, and
`prefill_s` for each token, both times `prefill_drift`. Were the fixed part left out, small chunks would look dear, become
smaller still, and starve a prompt. All in seconds.

Decoding n sequences at once is not always the quickest way to get n tokens: on one core, some weight formats have a
quick path for one token and a slow one for a few. So `split` says into which parts to cut a decode batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WEIGHT = 0.2  # of the newest observation in a moving average


@dataclass(slots=True)
class Rates:
    """The cost model of one engine. Mutated by its step thread only."""

    decode_s: list[float] = field(default_factory=lambda: [0.0, 0.02])  # index: sequences in the batch
    chunk_s: float = 0.01
    prefill_s: float = 0.005
    drift: float = 1.0
    prefill_drift: float = 1.0
    tokens_per_s: float = 0.0
    parts: list[tuple[int, ...]] = field(default_factory=lambda: [(), (1,)])

    def decode_cost_s(self, count: int) -> float:
        """The expected time to decode `count` sequences, cut in the best way."""
        return self.drift * sum(self._table_s(part) for part in self.split(count))

    def split(self, count: int) -> tuple[int, ...]:
        """The sizes of the decode batches that together serve `count` sequences quickest."""
        return self.parts[count] if count < len(self.parts) else (count,)

    def saw_decode(self, count: int, took_s: float) -> None:
        """A step without prefill took `took_s` for `count` sequences."""
        expected = sum(self._table_s(part) for part in self.split(count))
        self.drift += WEIGHT * (took_s / expected - self.drift)
        self.tokens_per_s += WEIGHT * (count / took_s - self.tokens_per_s)

    def saw_prefill(self, tokens: int, decodes: int, took_s: float) -> None:
        """A step with `tokens` of prompts took `took_s`, `decodes` sequences among them."""
        expected = tokens * self.prefill_s + (0.0 if decodes else self.chunk_s)
        actual = took_s - (self.decode_cost_s(decodes) if decodes else 0.0)
        self.prefill_drift += WEIGHT * (max(actual / expected, 0.1) - self.prefill_drift)

    @property
    def prompt_tokens_per_s(self) -> float:
        """How quickly a long prompt is computed when nothing else runs."""
        return 1.0 / (self.prefill_s * self.prefill_drift)

    def calibrate(self, decode_s: dict[int, float], chunks_s: dict[int, float], most: int) -> None:
        """Take the load-time measurements: seconds of decode batches (1 among them) and of two prompt chunks, by size."""
        self.decode_s = [0.0] + [interpolate(decode_s, size) for size in range(1, most + 1)]
        self.parts = best_parts(self.decode_s)
        small, large = min(chunks_s), max(chunks_s)
        slope = (chunks_s[large] - chunks_s[small]) / max(large - small, 1)
        self.prefill_s = slope if slope > 0 else chunks_s[large] / large
        self.chunk_s = max(0.0, chunks_s[small] - small * self.prefill_s)

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


def best_parts(cost_s: list[float], gain: float = 0.95) -> list[tuple[int, ...]]:
    """For each count the quickest way to cut it into batches; a cut must save 5 %, for measurements are noisy."""
    best: list[tuple[int, ...]] = [()]
    total = [0.0]
    for count in range(1, len(cost_s)):
        cuts = [(total[count - part] + cost_s[part], part) for part in range(1, count)]
        quickest, part = min(cuts, default=(cost_s[count], count))
        if quickest < cost_s[count] * gain:
            total.append(quickest)
            best.append(tuple(sorted((part, *best[count - part]), reverse=True)))
        else:
            total.append(cost_s[count])
            best.append((count,))
    return best
