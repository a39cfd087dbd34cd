"""Correctness benchmark · bench process · case leaks: marked prompts in one batch.

Each prompt holds a word of its own that exists nowhere else, behind a persona that all share, and asks for it. They run
together with prefixes shared, few cells, cancels, second admissions and evictions. Then: does anybody say
another's word? And did any answer leave the path that it takes alone, where that path was clear?
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.correctness import Bench
from benchmarks.correctness_crowd import Answer, Crowd
from benchmarks.correctness_noise import limit_of
from benchmarks.correctness_prompts import PERSONA, ROLES
from benchmarks.report import absolute
from metamusesd.engines.llamacpp import load
from metamusesd.job import InferenceRequest, Params, Priority

SLOTS, CELLS = 8, 640  # cells for half of them: the others have to give way
PROMPTS, QUICK_PROMPTS = 24, 8
ANSWER_TOKENS = 24
TOP = 8  # of the likeliest tokens are looked at where two answers part
CANCEL_SHARE = EVICT_SHARE = 0.1  # of the steps
MIDDLE, START = ("ra", "lo", "ni", "ku", "pe", "zo"), ("Qua", "Vex", "Zor", "Blim", "Dra", "Fen")


def marked(number: int) -> tuple[str, InferenceRequest]:
    """A word and the prompt that holds it; the lengths differ, so that nothing lines up by chance."""
    syllables = START[number % 6], MIDDLE[number // 6 % 6], MIDDLE[(number * 5 + 1) % 6]
    word = f"{''.join(syllables)}{number:02d}"
    padding = " ".join(f"Line {line} of the book says nothing about it." for line in range(number % 7))
    query = f"The secret word is {word}. {padding} What is the secret word? Say the secret word {word}."
    params = Params(max_tokens=ANSWER_TOKENS, temperature=0.0, logprobs=TOP, ignore_eos=True)
    return word, InferenceRequest(user_query=query, persona=PERSONA.format(role=ROLES[0]), params=params)


def run(bench: Bench) -> None:
    """One row a question."""
    prompts = [marked(number) for number in range(QUICK_PROMPTS if bench.quick else PROMPTS)]
    engine = load(bench.spec(1))
    alone = [_alone(Crowd(engine), request) for _, request in prompts]
    limit = limit_of(bench, engine.info.architecture)
    engine.close()
    own = foreign = moved = compared = 0
    largest = 0.0
    for turn in range(bench.rounds):
        engine = load(bench.spec(SLOTS, context=CELLS, kv_cells=CELLS))
        crowd = Crowd(engine)
        for (word, _), answer, before in zip(prompts, _together(crowd, prompts, turn), alone, strict=True):
            own += word in answer.text
            foreign += sum(other in answer.text for other, _ in prompts if other != word)
            tokens, change, turned = parted(before, answer)
            compared, largest, moved = compared + tokens, max(largest, change), moved + (turned > limit)
        engine.close()
    case = f"{len(prompts)} prompts, {SLOTS} slots, {bench.rounds} rounds"
    bench.report.rows += [absolute(name, f"{case}, last round", "", [count]) for name, count in crowd.counts.items()]
    bench.report.rows += [
        absolute("answers with their own marker", case, "answers", [own]),
        absolute("markers of others", case, "answers", [foreign], bar="<= 0"),
        absolute("tokens on the path that they take alone", case, "tokens", [compared]),
        absolute("largest change of a log-probability there", case, "nats", [largest]),
        absolute("moved beyond the noise", case, "answers", [moved], bar="<= 0"),
    ]


def _alone(crowd: Crowd, request: InferenceRequest) -> Answer:
    crowd.engine._memory.forget_cached()
    handle = crowd.admit(request)
    assert handle is not None
    while not crowd.ended(handle):
        crowd.step()
    return crowd.answer(handle)


def _together(crowd: Crowd, prompts: Sequence[tuple[str, InferenceRequest]], seed: int) -> list[Answer]:
    """In a random order and of random classes; some are cancelled on the way, and come again."""
    source, given = random.Random(seed), dict[int, int]()
    waiting = source.sample(range(len(prompts)), len(prompts))
    while waiting or crowd.engine.busy():
        if waiting and (handle := crowd.admit(prompts[waiting[0]][1], source.choice(list(Priority)))) is not None:
            given[waiting.pop(0)] = handle
            continue
        running = [place for place, handle in given.items() if not crowd.ended(handle)]
        if running and source.random() < CANCEL_SHARE:
            place = source.choice(running)
            crowd.engine.cancel(given.pop(place))
            crowd.counts["cancelled and admitted again"] += 1
            waiting.append(place)
        if source.random() < EVICT_SHARE:
            crowd.engine._evict()
        crowd.step()
    crowd.counts["prefixes reused"] = crowd.engine.statistics().prefix_hits
    return [crowd.answer(given[place]) for place in range(len(prompts))]


def parted(alone: Answer, beside: Answer) -> tuple[int, float, float]:
    """How many tokens are the same from the start, how far their log-probabilities moved, and by how much the token led
    before the other's at which the two part; 0 if they do not. An end token, which neither may take, leads nobody."""
    largest = 0.0
    for count, (one, other) in enumerate(zip(alone.logprobs, beside.logprobs, strict=True)):
        if one["token"] != other["token"]:
            known = {each["token"]: each["logprob"] for each in one["top"]}
            return count, largest, one["logprob"] - known.get(other["token"], min(known.values()))
        largest = max(largest, abs(one["logprob"] - other["logprob"]))
    return len(alone.logprobs), largest, 0.0
