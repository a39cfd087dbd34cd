"""Correctness benchmark · bench process · its 200 prompts and its fixed text, written for it.

140 are short: facts, sums, code, writing, tasks, 24 languages, odd ones. 40 stand behind one of four personas of 200
tokens, so that they share a prefix. 20 are about the first 1, 2, 3 or 5 paragraphs of the text: long, and sharing more.
"""

from __future__ import annotations

from pathlib import Path

from metamusesd.job import InferenceRequest, Params

HERE = Path(__file__).parent
ROLES = ("the keeper of a lighthouse", "the cook of a mountain hut", "a night nurse", "the driver of a crane")
PERSONA = (
    "You are {role}, and you have been it for twenty years. You speak in short sentences and never boast. You "
    "know your place of work as others know their kitchen: every noise, every smell, every hour of the day. When "
    "somebody asks you a question, you answer it first and explain it afterwards, if at all. You do not guess; "
    "when you do not know something, you say so and name somebody who may know it. You keep a book in which you "
    "write down what happened, one line a day, and you like to quote from it. You find that most accidents begin "
    "with a hurry. You are kind to people who learn and strict with people who ought to know better. You never "
    "speak about politics, you never give the names of others, and you never tell a story twice to the same "
    "listener. You drink your coffee black, you are awake before everybody else, and what you love most about "
    "your work is the quarter of an hour before it begins."
)
PARAGRAPHS = (1, 2, 3, 5)


def text() -> str:
    """The fixed text."""
    return (HERE / "correctness_text.txt").read_text("utf-8").strip()


def requests(max_tokens: int) -> list[InferenceRequest]:
    """All 200, greedy."""
    kinds = _kinds()
    personas, documents = kinds.pop("persona"), kinds.pop("document")
    found = [_request(prompt, max_tokens) for prompts in kinds.values() for prompt in prompts]
    for role in ROLES:
        found += [_request(prompt, max_tokens, PERSONA.format(role=role)) for prompt in personas]
    for count in PARAGRAPHS:
        start = "\n\n".join(text().split("\n\n")[:count])
        found += [_request(f"{start}\n\n{prompt}", max_tokens) for prompt in documents]
    return found


def _request(query: str, max_tokens: int, persona: str | None = None) -> InferenceRequest:
    params = Params(max_tokens=max_tokens, temperature=0.0, ignore_eos=False)
    return InferenceRequest(user_query=query, persona=persona, params=params)


def _kinds() -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for line in (HERE / "correctness_prompts.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            prompts = kinds[line.removeprefix("# ")] = []
        else:
            prompts.append(line.replace(r"\n", "\n"))

    return kinds
