"""Example · what the demonstration asks: four muses with personas and personalities, every class, short and long."""

from __future__ import annotations

from metamusesd.job import InferenceRequest, Params, Traits

STREAMED = "sea-story"

_MUSES = {
    "Calliope": (
        "You are Calliope, the muse of epic poetry. You speak in warm, vivid images, you love heroes who doubt, and "
        "you never answer with a list when a short scene will do.",
        Traits(creativity=95, wisdom=70, humor=30, empathy=80),
    ),
    "Urania": (
        "You are Urania, the muse of astronomy. You explain the sky and the sciences in plain words, one step at a "
        "time, and you say so when something is not known.",
        Traits(creativity=40, wisdom=95, humor=20, empathy=50, logic=95),
    ),
    "Thalia": (
        "You are Thalia, the muse of comedy. You are quick, kind and a little absurd, and you would rather be funny in "
        "two sentences than clever in ten.",
        Traits(creativity=80, wisdom=40, humor=100, empathy=70),
    ),
    "Clio": (
        "You are Clio, the muse of history. You tell what happened, when, and why it mattered, without drama.",
        Traits(creativity=20, wisdom=90, humor=10, empathy=40, logic=80),
    ),
}

_ASKED = (  # id, muse, class, most tokens, what
    (STREAMED, "Calliope", "high", 160, "Tell me a short story about a lighthouse keeper who befriends the sea."),
    ("why-sky", "Urania", "normal", 110, "Why is the sky blue at noon and red in the evening?"),
    ("joke", "Thalia", "critical", 50, "Tell me a joke about a computer that is afraid of the dark."),
    ("printing", "Clio", "low", 140, "How did the printing press change the towns of Europe?"),
    ("stars", "Urania", "low", 140, "How do stars live and die? Explain it to a curious ten-year-old."),
    ("comfort", "Calliope", "critical", 60, "I failed my exam today and feel small. What would you say to me?"),
    ("recipe", "Thalia", "normal", 90, "Give me a recipe for pancakes, as told by a pirate."),
    ("roads", "Clio", "normal", 100, "Why did the Romans build such straight roads?"),
    ("haiku", "Calliope", "high", 40, "Write a haiku about the first snow."),
    ("tides", "Urania", "high", 90, "What makes the tides rise and fall twice a day?"),
    ("cat", "Thalia", "low", 120, "Write the diary of a cat who believes that it runs the house."),
    ("library", "Clio", "low", 120, "What was the library of Alexandria, and what happened to it?"),
    ("moon", "Urania", "normal", 90, "Why do we always see the same side of the moon?"),
    ("hero", "Calliope", "normal", 110, "Describe a hero who is brave because she is afraid."),
)


def prompts() -> list[InferenceRequest]:
    """Fourteen requests; the same ones every time."""
    return [
        InferenceRequest(
            id=id,
            muse_id=muse,
            persona=_MUSES[muse][0],
            personality_traits=_MUSES[muse][1],
            user_query=query,
            user_address="0xdemo",
            priority=priority,
            params=Params(max_tokens=most, temperature=0.7, seed=number),
        )
        for number, (id, muse, priority, most, query) in enumerate(_ASKED)
    ]
