"""Stage 3 and 7 · dispatcher and worker · turn a request into the messages that a chat template takes.

A pure function, shared so that what the dispatcher measures and keys its cache by is what the worker renders.
The persona stands first and the traits after it: jobs of one muse share the longest possible prefix.
"""

from __future__ import annotations

from collections.abc import Callable

from metamusesd.job import InferenceRequest, Message, Traits


def messages_of(request: InferenceRequest) -> list[Message]:
    """The conversation of `request`: a system message if it has persona or traits, context, then the query."""
    turns = list(request.messages) if request.messages is not None else _turns_of_query(request)
    system = system_text(request)
    if not system:
        return turns
    if turns and turns[0].role == "system":
        system = f"{system}\n\n{turns[0].content}"
        turns = turns[1:]
    return [Message(role="system", content=system), *turns]


def system_text(request: InferenceRequest) -> str:
    """What the muse is told about itself; empty when the request says nothing about it."""
    parts = [request.persona.strip() if request.persona else ""]
    if request.personality_traits is not None:
        parts.append(traits_sentence(request.personality_traits))
    return "\n\n".join(part for part in parts if part)


def traits_sentence(traits: Traits) -> str:
    """The traits as one sentence, in a fixed order."""
    values = [(name, getattr(traits, name)) for name in traits.__struct_fields__]
    listed = ", ".join(f"{name} {value}" for name, value in values if value is not None)
    return f"Your character on a scale of 0 to 100: {listed}."


def droppable(messages: list[Message]) -> list[int]:
    """How many of the oldest turns may be dropped, in rising order, to make a prompt shorter.

    System messages at the head and the last turn always stay. A conversation is cut before a user's turn where it has
    one, because many templates want user and assistant to alternate.
    """
    head = head_length(messages)
    counts = range(1, len(messages) - head)
    at_user = [count for count in counts if messages[head + count].role == "user"]
    return at_user or list(counts)


def without_oldest(messages: list[Message], count: int) -> list[Message]:
    """`messages` less the `count` oldest turns that are not system messages at the head."""
    head = head_length(messages)
    return messages[:head] + messages[head + count :]


def fitted(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """`messages` with as few of the oldest turns dropped as make it fit, found by bisection; else all that may go."""
    counts = [0, *droppable(messages)]
    low, high = 0, len(counts) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(without_oldest(messages, counts[middle])):
            high = middle
        else:
            low = middle + 1
    return without_oldest(messages, counts[low])


def head_length(messages: list[Message]) -> int:
    """How many system messages stand at the head."""
    for index, message in enumerate(messages):
        if message.role != "system":
            return index
    return len(messages)


def _turns_of_query(request: InferenceRequest) -> list[Message]:
    return [*request.context, Message(role="user", content=request.user_query or "")]
