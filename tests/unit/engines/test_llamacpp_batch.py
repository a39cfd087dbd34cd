"""The pure planning of a step: who runs, who yields, how much prefill."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metamusesd.engines.llamacpp import batch
from metamusesd.engines.llamacpp.batch import Budget, Plan, View

LOW, NORMAL, CRITICAL = 0, 1, 3


def budget(**changes: float) -> Budget:
    values = {
        "slots": 8,
        "chunk_limit": 512,
        "decode_s": 0.05,
        "chunk_s": 0.0,
        "mixes": False,
        "prefill_s": 0.005,
        "large_s": 0.005,
        "prefill_ratio": 1.2,
        "credit_s": 0.0,
        "large_cap_s": batch.LARGE_CAP_S,
    }
    return Budget(**(values | changes))  # type: ignore[arg-type]


def planned(views: list[View], **changes: float) -> Plan:
    given_ = budget(**changes)
    return batch.plan(batch.runnable(views, given_.slots), views, given_)


def test_lower_class_yields() -> None:
    """A critical prompt runs alone; the low sequences yield."""
    views = [View(1, LOW, 1, 1), View(2, LOW, 2, 30), View(3, CRITICAL, 3, 10)]
    plan = planned(views)
    assert plan.prefill == ((3, 10),)
    assert plan.decode == ()
    assert set(plan.yielding) == {1, 2}


def test_immune_is_not_preempted() -> None:
    """An aged low sequence goes on beside a critical one."""
    plan = planned([View(1, LOW, 1, 1, immune=True), View(2, CRITICAL, 2, 1)])
    assert set(plan.decode) == {1, 2}


def test_prompts_one_after_another() -> None:
    """Of several prompts the oldest is computed alone, to its end if it fits."""
    plan = planned([View(2, NORMAL, 2, 8), View(1, NORMAL, 1, 12)])
    assert plan.prefill == ((1, 12),)


def test_prefill_beside_streams_takes_its_ratio() -> None:
    """Beside running streams a long prompt gets prefill_ratio × the decode time, and the streams go on."""
    plan = planned([View(1, NORMAL, 1, 1), View(2, NORMAL, 2, 1500)])
    assert plan.decode == (1,)
    assert plan.prefill == ((2, 12),)


def test_prefill_beside_few_streams_has_a_floor() -> None:
    """Beside one quick stream a prompt still gets chunks that are worth their overhead."""
    plan = planned([View(1, NORMAL, 1, 1), View(2, NORMAL, 2, 1500)], decode_s=0.008)
    assert plan.prefill == ((2, 8),)


def test_fixed_chunks_do_not_depend_on_time() -> None:
    """With a fixed length a prompt is cut alike beside streams and alone, slow or quick, with credit or without."""
    prompt, stream = View(2, NORMAL, 2, 100), View(1, NORMAL, 1, 1)
    for views in ([prompt], [prompt, stream]):
        for changes in ({"prefill_s": 1.0}, {"prefill_s": 1e-6}, {"credit_s": 1.0}):
            assert planned(views, chunk=32, **changes).prefill == ((2, 32),)
    assert planned([View(2, NORMAL, 2, 20)], chunk=32).prefill == ((2, 20),)


def test_short_prompt_spends_credit() -> None:
    """A short prompt within the credit goes first, and the streams sit the step out."""
    plan = planned([View(1, NORMAL, 1, 1), View(2, NORMAL, 2, 16)], credit_s=0.5)
    assert plan.decode == ()
    assert plan.prefill == ((2, 16),)
    assert plan.spent_s > 0


def test_no_step_is_longer_than_the_cap() -> None:
    """A lone long prompt is cut into large chunks, as many as the time allows; what is left goes with them if it can,
    for an odd end is slow."""
    alone = [View(1, NORMAL, 1, 4000)]
    assert planned(alone).prefill == ((1, 192),)
    assert planned(alone, large_s=0.01).prefill == ((1, 64),)
    assert planned(alone, large_s=0.02, prefill_s=0.02).prefill == ((1, 50),)
    assert planned(alone, large_s=0.0001).prefill == ((1, 512),)
    assert planned([View(1, NORMAL, 1, 199)]).prefill == ((1, 199),)
    assert planned(alone, large_cap_s=batch.FIRM_CAP_S).prefill == ((1, 64),)
    assert planned(alone, large_cap_s=batch.FIRM_CAP_S, large_s=0.01).prefill == ((1, 63),)
    assert planned(alone, large_cap_s=batch.FIRM_CAP_S, large_s=0.01, prefill_s=0.016).prefill == ((1, 21),)


def test_prompts_ride_on_the_batch_of_a_gpu() -> None:
    """Several at once, FIFO, until the time is over; streams go on, whatever the credit is."""
    views = [View(1, NORMAL, 1, 1), *(View(number, NORMAL, number, 100) for number in (4, 3, 2))]
    plan = planned(views, mixes=True, prefill_s=0.0004, credit_s=1.0)
    assert (plan.decode, plan.prefill, plan.spent_s) == ((1,), ((2, 100), (3, 50)), 0.0)
    assert planned(views, mixes=True, prefill_s=1e-6).prefill == ((2, 100), (3, 100), (4, 100))
    assert planned(views[1:], mixes=True, prefill_s=0.0004).prefill == ((2, 100), (3, 100), (4, 50))
    full = planned([View(1, NORMAL, 1, 1), View(2, NORMAL, 2, 4000)], mixes=True, prefill_s=1e-6)
    assert full.prefill == ((2, 511),)


def test_credit_is_bounded_and_earned_by_decoding() -> None:
    """Decoding earns credit up to the cap; spending it never makes it negative."""
    decoding = Plan(decode=(1,))
    assert batch.earned_s(0.0, decoding, 0.1, 1.2) == 0.1 * 1.2
    assert batch.earned_s(0.99, decoding, 1.0, 1.2) == batch.CREDIT_CAP_S
    assert batch.earned_s(0.1, Plan(prefill=((1, 5),), spent_s=0.5), 0.1, 1.2) == 0.0


VIEWS = st.lists(
    st.builds(View, st.just(0), st.integers(0, 3), st.just(0), st.integers(1, 3000), st.booleans(), st.booleans()),
    max_size=14,
).map(lambda views: [View(i, v.rank, i, v.remaining, v.immune, v.waiting) for i, v in enumerate(views)])


@given(VIEWS, st.floats(0.0, 1.0), st.floats(1e-5, 0.1), st.booleans())
def test_a_plan_is_always_sound(views: list[View], credit_s: float, prefill_s: float, mixes: bool) -> None:
    """Every plan keeps the limits, makes progress whenever something may run, and accounts for everyone."""
    plan = planned(views, credit_s=credit_s, prefill_s=prefill_s, large_s=prefill_s * 0.7, mixes=mixes)
    by_key = {view.key: view for view in views}
    taking = {*plan.decode, *(key for key, _ in plan.prefill)}
    assert len(plan.decode) + sum(count for _, count in plan.prefill) <= 512
    assert all(1 <= count <= by_key[key].remaining for key, count in plan.prefill)
    assert not taking & set(plan.yielding)
    assert not any(by_key[key].waiting for key in taking)
    assert bool(taking) == any(not view.waiting for view in views)
    assert len(batch.runnable(views, 8)) <= 8


def test_who_has_yielded_long_enough_leaves_half_of_the_slots() -> None:
    """Eight low ones that are immune, three critical ones, four slots: two each; what one side does not
    need the other has."""
    low = [View(number, LOW, number, 1, immune=True) for number in range(8)]
    high = [View(number, CRITICAL, number, 1) for number in (10, 11, 12)]
    assert [view.key for view in batch.runnable([*low, *high], 4)] == [10, 11, 0, 1]
    assert [view.key for view in batch.runnable([*low, *high[:1]], 4)] == [10, 0, 1, 2]
    assert [view.key for view in batch.runnable([*low[:1], *high], 4)] == [10, 11, 12, 0]
    assert [view.key for view in batch.runnable([*low, *high], 1)] == [0]
