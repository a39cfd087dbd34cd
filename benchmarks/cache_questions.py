"""Cache benchmark · bench process · questions out of our own templates, and the arithmetic of latencies. Pure.

pairs     `stored` is answered before the daemon starts, `asked` means the same in other words; all are near-twins
fillers   everything else that fills the store: other things, so that no pair means one of them
misses    about neither; no two ask the same
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VERBS = ["clean", "repair", "paint", "pack", "store", "measure", "polish", "move"]
STUFF = ["wooden", "metal", "leather", "glass", "plastic", "ceramic", "marble", "velvet"]
THINGS = ["table", "lamp", "bag", "mirror", "vase", "clock", "bench", "tray", "bowl", "shelf", "frame", "basket"]
PLACES = ["kitchen", "garage", "garden", "bathroom", "cellar", "hallway", "attic", "workshop"]
SHORT = "{opening} {verb} a {stuff} {thing} in the {place} without leaving any marks?"
LONG = (
    "In an old house near the sea, where the air is damp in winter and the rooms are heated with a small stove, "
    "{opening} {verb} a {stuff} {thing} that stands in the {place}, without leaving any marks and without using "
    "anything that smells for days?"
)
STORED_OPENING = "how do I"
SHORT_OPENINGS = ("how can I", "how should I", "how does one")
LONG_OPENINGS = ("how can I",)

OTHER_THINGS = [
    "tractor", "violin", "piano", "kayak", "tent", "drone", "ladder", "camera", "kettle", "bicycle", "saddle",
    "lantern", "anchor", "telescope", "loom", "canoe", "sledge", "forge", "windmill", "compass", "barrel",
    "trumpet", "hammock", "scooter",
]  # fmt: skip
OTHER_STUFF = [
    "heavy", "antique", "cheap", "foldable", "rusty", "hollow", "painted", "rented", "spare", "noisy", "broken",
    "borrowed",
]  # fmt: skip
OTHER_PLACES = [
    "mountains", "desert", "harbour", "forest", "city", "valley", "snow", "rain", "museum", "school", "market",
    "village",
]  # fmt: skip
OTHER_FORMS = (
    "What does a {stuff} {thing} cost in the {place} when it is sold by {seller}?",
    "Who invented the {stuff} {thing} that {seller} showed in the {place}?",
    "Why does a {stuff} {thing} fail in the {place} according to {seller}?",
    "Which {stuff} {thing} do people like in the {place} of {seller}?",
    "When was the {stuff} {thing} of {seller} first seen in the {place}?",
    "How many of {seller} own a {stuff} {thing} in the {place}?",
)
SELLERS = [
    "farmers", "sailors", "teachers", "nurses", "painters", "monks", "pilots", "bakers", "miners", "judges",
    "weavers", "shepherds",
]  # fmt: skip
NAMES = ["Orla", "Bram", "Juno", "Tavi", "Mirek", "Sanna", "Pell", "Ivo", "Greta", "Lucan", "Noor", "Edda"]
DEEDS = ["song", "bridge", "comet", "statue", "treaty", "recipe", "novel", "dance", "island", "engine"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two wordings of one question."""

    stored: str
    asked: str


def pairs(count: int, *, long: bool, seed: int = 1) -> list[Pair]:
    """`count` different questions, each in two wordings; the first ones are the same for any count."""
    slots = list(itertools.product(VERBS, STUFF, THINGS, PLACES))
    random.Random(seed).shuffle(slots)
    template, openings = (LONG, LONG_OPENINGS) if long else (SHORT, SHORT_OPENINGS)
    made = []
    for number, (verb, stuff, thing, place) in enumerate(slots[:count]):
        words = {"verb": verb, "stuff": stuff, "thing": thing, "place": place}
        opening = openings[number % len(openings)]
        made.append(Pair(*(_sentence(template, opening=each, **words) for each in (STORED_OPENING, opening))))
    if len(made) < count:
        raise ValueError(f"the templates make {len(made)} pairs, not {count}")
    return made


def fillers(count: int, seed: int = 2) -> list[str]:
    """`count` different questions about other things."""
    slots = list(itertools.product(OTHER_FORMS, OTHER_STUFF, OTHER_THINGS, OTHER_PLACES, SELLERS))
    if len(slots) < count:
        raise ValueError(f"the templates make {len(slots)} fillers, not {count}")
    random.Random(seed).shuffle(slots)
    return [
        form.format(stuff=stuff, thing=thing, place=place, seller=seller)
        for form, stuff, thing, place, seller in slots[:count]
    ]


def misses(label: str) -> Iterator[str]:
    """Questions that nobody answered, without end; another label makes others."""
    for number in itertools.count():
        choice = random.Random(f"{label}{number}")
        one, other, deed = choice.choice(NAMES), choice.choice(NAMES), choice.choice(DEEDS)
        yield f"Did {one} of house {label}{number} make the {deed} of {other}?"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed: one that was measured, none in between."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _sentence(template: str, **words: str) -> str:
    made = template.format(**words)
    return made[0].upper() + made[1:]
