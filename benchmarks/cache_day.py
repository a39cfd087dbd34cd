"""Cache benchmark · bench process · a day of demo traffic out of our own templates, whose truth is known. Pure.

A meaning is one thing that people want to know, in several wordings. Those of one family differ in a word or two: they
are near-twins of each other, and an answer to one is wrong for all others. People are of a tenant and talk to a muse;
which meaning, wording, muse and tenant is drawn by Zipf's law, so few are asked often and many once.

    open      may be answered from the cache: within its tenant and muse
    personal  says `my`, and means what everybody's question means
    exact     code or sums: only the same text again
    never     depends on the time or on the user's state: any hit is wrong
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Family = tuple[str, tuple[str, ...], tuple[str, ...]]  # kind, wordings with {}, what stands there (`a/b`: {0} and {1})

FAMILIES: tuple[Family, ...] = (
    ("open", ("How do I clean {}?", "How can I clean {}?", "What is the best way to clean {}?",
              "How should I clean {}?"),
     ("a cast iron pan", "a leather sofa", "a wool carpet", "suede shoes", "a glass teapot", "a silver ring")),
    ("open", ("Can {0} eat {1}?", "Are {0} able to eat {1}?", "Is it safe for {0} to eat {1}?"),
     ("dogs/chocolate", "cats/chocolate", "dogs/grapes", "cats/tuna", "rabbits/grapes", "parrots/bread")),
    ("open", ("What is the capital of {}?", "What's the capital city of {}?", "Which city is the capital of {}?"),
     ("France", "Norway", "Kenya", "Peru", "Japan", "Canada", "Austria", "Australia")),
    ("open", ("How do I convert {0} to {1}?", "How can I convert {0} into {1}?",
              "What is the way to convert {0} to {1}?"),
     ("miles/kilometres", "kilometres/miles", "grams/ounces", "ounces/grams", "litres/gallons", "gallons/litres")),
    ("open", ("Should runners stretch {0} {1}?", "Is it good for runners to stretch {0} {1}?"),
     ("before/a race", "after/a race", "during/a race", "before/breakfast", "after/breakfast")),
    ("open", ("How can people become {}?", "How do people become {}?", "How does a person become {}?"),
     ("more patient", "less patient", "more confident", "less confident", "more organised", "less organised")),
    ("open", ("What should new parents {}?", "Which things should new parents {}?"),
     ("buy", "not buy", "worry about", "not worry about", "do first", "do last")),
    ("open", ("How does {} work?", "Can you tell me how {} works?", "How exactly does {} work?"),
     ("a heat pump", "a steam engine", "a fridge", "a microwave oven", "a solar panel", "a lithium battery")),
    ("open", ("How many {0} are in {1}?", "How many {0} does {1} have?", "What number of {0} is in {1}?"),
     ("minutes/a day", "minutes/a week", "hours/a week", "days/a leap year", "weeks/a year", "players/a rugby team")),
    ("open", ("Is it healthy to sleep {0} hours a {1}?", "Is sleeping {0} hours a {1} healthy?"),
     ("5/night", "6/night", "9/night", "10/night", "2/day")),
    ("open", ("Why did {0} attack {1}?", "What made {0} attack {1}?", "For what reason did {0} attack {1}?"),
     ("Rome/Carthage", "Carthage/Rome", "Athens/Sparta", "Sparta/Athens")),
    ("open", ("Who wrote {}?", "Who is the author of {}?", "Who was the writer of {}?"),
     ("The Time Machine", "Moby Dick", "Jane Eyre", "Dracula", "Emma", "Ulysses")),
    ("open", ("What is the difference between {0} and {1}?", "How do {0} and {1} differ?"),
     ("fog/mist", "jam/jelly", "rabbits/hares", "crows/ravens", "yoga/pilates")),
    ("open", ("How long should I boil {}?", "For how long should I boil {}?", "How long do I have to boil {}?"),
     ("an egg", "two kilos of potatoes", "brown rice", "white rice", "fresh pasta", "dried pasta")),
    ("personal", ("How do I improve my {}?", "How can I improve my {}?"),
     ("handwriting", "posture", "memory", "French", "Spanish")),
    ("exact", ("Write a python function that {}", "Please write a python function that {}"),
     ("adds two numbers", "subtracts two numbers", "sorts a list in ascending order",
      "sorts a list in descending order")),
    ("never", ("What is the weather in {} today?", "How is the weather in {} today?"), ("Paris", "Oslo", "Lima")),
    ("never", ("What is the balance of my {}?", "How much is left on my {}?"), ("account", "gift card")),
    ("never", ("Why was my {} cancelled?", "Can I see why my {} was cancelled?"), ("order", "flight")),
)  # fmt: skip
TENANTS, MUSES = ("acme", "globex", "initech"), ("sage", "jester", "coach", "poet")
USERS = 40  # of a tenant
BURST_EVERY, BURST = 40, 4  # every 40th question is asked by four more people at the same moment


@dataclass(frozen=True, slots=True)
class Meaning:
    """What is wanted, and how it may be said."""

    name: str
    kind: str
    wordings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the day."""

    meaning: Meaning
    text: str
    tenant: str
    muse: str
    user: str

    @property
    def walls(self) -> tuple[str, ...]:
        """Who may share an answer."""
        return (self.tenant, self.muse, self.user) if self.meaning.kind == "personal" else (self.tenant, self.muse)


@dataclass(frozen=True, slots=True)
class Given:
    """What came of it: `kind` of the cache's note, and the question whose answer was given (the echo says it)."""

    kind: str
    content: str
    entry_fits: bool = True  # the entry is of this very partition

    @property
    def is_hit(self) -> bool:
        return self.kind in ("exact", "semantic", "flight")


def meanings() -> list[Meaning]:
    """All of them."""
    found = []
    for kind, wordings, values in FAMILIES:
        for value in values:
            said = tuple(wording.format(*value.split("/")) for wording in wordings)
            found.append(Meaning(said[0], kind, said))
    return found


def day(requests: int, seed: int = 7) -> list[list[Ask]]:
    """The requests in their order; those of one inner list come at the same moment."""
    random_ = random.Random(seed)
    known = meanings()
    random_.shuffle(known)
    waves: list[list[Ask]] = []
    left = requests
    while left > 0:
        meaning = _zipf(random_, known)
        tenant, muse = _zipf(random_, TENANTS), _zipf(random_, MUSES)
        size = min(left, 1 + BURST if len(waves) % BURST_EVERY == BURST_EVERY - 1 else 1)
        text = _zipf(random_, meaning.wordings)
        users = random_.sample(range(USERS), size)
        waves.append([Ask(meaning, text, tenant, muse, f"{tenant}-{user}") for user in users])
        left -= size
    return waves


def is_right(ask: Ask, given: Given) -> bool:
    """Whether a hit was one that the asker could want."""
    if ask.meaning.kind == "never" or not given.entry_fits:
        return False
    wanted = (ask.text,) if ask.meaning.kind == "exact" else ask.meaning.wordings
    return given.content in wanted


def chances(asks: Sequence[Ask], givens: Sequence[Given]) -> dict[str, tuple[int, int]]:
    """How many could have hit, by an equal text and by another wording, and how many did: (hits, chances).

    A user who asks the same text twice wants a new answer: no chance.
    """
    counted = {"equal": [0, 0], "worded": [0, 0]}
    seen: dict[tuple[str, ...], set[str]] = {}
    repeats: set[tuple[str, ...]] = set()
    for ask, given in zip(asks, givens, strict=True):
        before = seen.setdefault((*ask.walls, ask.meaning.name), set())
        mine = (ask.user, *ask.walls, ask.text)
        which = "equal" if ask.text in before else "worded" if before and ask.meaning.kind != "exact" else ""
        if which and ask.meaning.kind != "never" and mine not in repeats:
            counted[which][0] += given.is_hit
            counted[which][1] += 1
        before.add(ask.text)
        repeats.add(mine)
    return {name: (hits, possible) for name, (hits, possible) in counted.items()}


def flat(waves: Iterable[Sequence[Ask]]) -> list[Ask]:
    return list(itertools.chain.from_iterable(waves))


def _zipf(random_: random.Random, things: Sequence[T]) -> T:
    """The first one twice as often as the second, three times as often as the third."""
    return random_.choices(things, [1 / rank for rank in range(1, len(things) + 1)])[0]
