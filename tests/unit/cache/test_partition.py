"""The walls of the caches: what must keep two requests apart, and what must not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.cache.partition import identity, question_of
from metamusesd.job import InferenceRequest, parse_request

BASE: dict[str, Any] = {
    "user_query": "What do you think of my garden?", "tenant": "t1", "user_address": "0xabc", "muse_id": 7,
    "persona": "You are Ada.", "personality_traits": {"creativity": 40, "humor": 60, "logic": 10},
    "context": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}],
    "params": {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 1,
               "presence_penalty": 0.1, "frequency_penalty": 0.1, "max_tokens": 100, "stop": ["x"],
               "logit_bias": {"5": 1.0}, "json_schema": {"type": "object"}},
}  # fmt: skip
MODEL = identity("sha256:1", "template", "llamacpp", temperature=0.7)


def key(body: dict[str, Any], model: str = MODEL) -> str:
    return question_of(parse_request(body)).key(model)


def with_(**changes: Any) -> dict[str, Any]:
    return {**BASE, **changes}


def params(**changes: Any) -> dict[str, Any]:
    return with_(params={**BASE["params"], **changes})


DIFFERENT = {
    "text": with_(user_query="What do you think of my house?"),
    "case of the text": with_(user_query="what do you think of my garden?"),
    "inner space": with_(user_query="What do you think  of my garden?"),
    "tenant": with_(tenant="t2"),
    "user": with_(user_address="0xdef"),
    "muse": with_(muse_id=8),
    "muse of another type": with_(muse_id="7"),
    "no muse": {name: value for name, value in BASE.items() if name != "muse_id"},
    "persona": with_(persona="You are Bob."),
    "trait": with_(personality_traits={"creativity": 41, "humor": 60, "logic": 10}),
    "no logic": with_(personality_traits={"creativity": 40, "humor": 60}),
    "context content": with_(context=[{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]),
    "context role": with_(context=[{"role": "user", "content": "Hello."}, {"role": "user", "content": "Hi."}]),
    "context order": with_(context=BASE["context"][::-1]),
    "context cut elsewhere": with_(context=[{"role": "user", "content": "Hello.Hi."}]),
    "no context": with_(context=[]),
    "truncate": with_(truncate="oldest"),
    "scope": with_(cache={"scope": "tenant"}),
    "grammar": with_(params={"grammar": 'root ::= "a"'}),
    "schema": params(json_schema={"type": "array"}),
    "schema of two": params(json_schema={"type": "object", "properties": {"a": {}, "b": {}}}),
    "its order": params(json_schema={"type": "object", "properties": {"b": {}, "a": {}}}),
    "bias": params(logit_bias={"5": 2.0}),
    "stop": params(stop=["y"]),
    **{
        name: params(**{name: value})
        for name, value in {
            "temperature": 0.6, "top_p": 0.8, "top_k": 41, "min_p": 0.2, "repeat_penalty": 1.2, "seed": 2,
            "presence_penalty": 0.2, "frequency_penalty": 0.2, "max_tokens": 101,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_each_wall_is_a_wall(name: str) -> None:
    """A request that differs in this one thing has another key."""
    assert key(DIFFERENT[name]) != key(BASE)


def test_all_walls_keep_all_apart() -> None:
    """No two of them meet."""
    keys = [key(body) for body in (BASE, *DIFFERENT.values())]
    assert len(set(keys)) == len(keys)


SAME = {
    "outer space": with_(user_query="  What do you think of my garden?\n"),
    "id": with_(id="x"),
    "priority": with_(priority="high"),
    "deadline": with_(deadline_ms=5000),
    "stream": with_(stream=False),
    "mailbox": with_(reply_to="box"),
    "restart": with_(on_restart="fail"),
    "created": with_(created_at=5.0),
    "key": with_(idempotency_key="k"),
    "timestamps": with_(context=[{**turn, "timestamp": 5.0} for turn in BASE["context"]]),
    "tags": with_(cache={"tags": ["red"]}),
    "model by name": with_(model="smollm2"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_shape_the_answer_is_no_wall(name: str) -> None:
    """A cache behind too many walls never hits."""
    assert key(SAME[name]) == key(BASE)


def test_letters_may_be_composed_or_not() -> None:
    """NFC: the same text, typed on another system."""
    assert key({"user_query": "Caf\u00e9?"}) == key({"user_query": "Cafe\u0301?"})


def test_both_forms_of_a_request_meet() -> None:
    """`messages` with the same turns is the same question."""
    turns = [{"role": "system", "content": "You are Ada."}, *BASE["context"], {"role": "user", "content": "Why?"}]
    by_messages = {"messages": turns, "user_address": "u"}
    by_query = {"persona": "You are Ada.", "context": BASE["context"], "user_query": "Why?", "user_address": "u"}
    assert key(by_messages) == key(by_query)


@pytest.mark.parametrize(
    ("body", "personal"),
    [
        ({"user_query": "What is the capital of France?"}, False),
        ({"user_query": "How do I boil an egg?"}, False),
        ({"user_query": "How should I cook rice?"}, False),
        ({"user_query": "Is my dog too fat?"}, True),
        ({"user_query": "I am sad."}, True),
        ({"user_query": "I'm sad."}, True),
        ({"user_query": "How do I clean my shoes?"}, False),
        ({"user_query": "How much water do I need?"}, False),
        ({"user_query": "How do I sleep when I am sad?"}, True),
        ({"user_query": "Why is my knee swollen?"}, True),
        ({"user_query": "How tall will my son be?"}, True),
        ({"user_query": "I take warfarin, may I eat kale?"}, True),
        ({"user_query": "Go on.", "context": [{"role": "user", "content": "Hi."}]}, True),
        ({"user_query": "Is my dog too fat?", "cache": {"scope": "tenant"}}, False),
        ({"user_query": "Is my dog too fat?", "cache": {"scope": "muse"}}, False),
        ({"user_query": "What is the capital of France?", "cache": {"scope": "user"}}, True),
    ],
)
def test_the_user_is_a_wall_where_it_counts(body: dict[str, Any], personal: bool) -> None:
    """With a conversation, where the text speaks of the user, or where the caller says so."""
    assert (key({**body, "user_address": "u1"}) != key({**body, "user_address": "u2"})) is personal


def test_a_personal_question_may_read_what_was_answered_to_nobody_in_particular() -> None:
    """By meaning, never the other way round, and not where the caller or a conversation puts the wall up."""

    def asked(query: str, **more: Any) -> Any:
        return question_of(parse_request({"user_query": query, "user_address": "u1", **more}))

    mine, general = asked("Is my dog too fat?"), asked("Is this dog too fat?")
    assert general.partition(MODEL) in mine.partitions([MODEL])
    assert general.partitions([MODEL]) == [general.partition(MODEL)]
    assert mine.partition(MODEL) != general.partition(MODEL)
    for strict in ({"cache": {"scope": "user"}}, {"context": BASE["context"]}):
        assert len(asked("Is my dog too fat?", **strict).partitions([MODEL])) == 1


def test_another_model_is_another_partition() -> None:
    """File, template, engine and defaults; walls that run into each other do not meet either."""
    models = {
        identity("sha256:1", "t", "llamacpp", temperature=0.7), identity("sha256:2", "t", "llamacpp", temperature=0.7),
        identity("sha256:1", "u", "llamacpp", temperature=0.7), identity("sha256:1", "t", "echo", temperature=0.7),
        identity("sha256:1", "t", "llamacpp", temperature=0.8), identity("sha256:1t", "", "llamacpp", temperature=0.7),
    }  # fmt: skip
    assert len({key(BASE, model) for model in models}) == 6


def test_flights_are_of_equal_jobs_for_the_same_models() -> None:
    """The order of the models makes no difference; one more does."""
    question = question_of(InferenceRequest(user_query="Why?"))
    assert question.flight(["a", "b"]) == question.flight(["b", "a"]) != question.flight(["a", "b", "c"])


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@given(texts, texts, texts, texts)
def test_no_text_slips_from_one_wall_into_another(persona: str, first: str, second: str, query: str) -> None:
    """Whatever the texts are, moving a part of one into its neighbour is another question."""
    context = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    body = {"user_query": query + "x", "persona": "p" + persona, "context": context}
    into_first = {**body, "persona": "p", "context": [{**context[0], "content": persona + "|" + first}, context[1]]}
    into_second = {**body, "context": [{**context[0], "content": ""}, {**context[1], "content": first + "|" + second}]}
    into_query = {
        **body,
        "context": [context[0], {**context[1], "content": ""}],
        "user_query": second + "|" + query + "x",
    }
    assert len({key(each) for each in (body, into_first, into_second, into_query)}) == 4
