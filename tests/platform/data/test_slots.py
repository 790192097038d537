import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.slots import SlotPlan, Turn
from heliostat.errors import TooManyWorkersError


@st.composite
def plans(draw: st.DrawFn) -> SlotPlan:
    slots = draw(st.integers(1, 300))
    return SlotPlan(slots, draw(st.integers(1, slots)))


@given(plans())
def test_slots_of__workers_cover_all_slots_once(plan: SlotPlan) -> None:
    shares = [plan.slots_of(rank) for rank in range(plan.world_size)]
    assert sorted(slot for share in shares for slot in share) == list(range(plan.slots))
    assert all(share == sorted(share) != [] for share in shares)


@given(plans())
def test_turns_of__all_workers_run_equally_many_rounds(plan: SlotPlan) -> None:
    for rank in range(plan.world_size):
        turns = plan.turns_of(rank)
        assert len(turns) == plan.rounds
        assert [turn.slot for turn in turns if turn.counts] == plan.slots_of(rank)
        # A round that does not count still computes a slot that the worker holds.
        assert {turn.slot for turn in turns} <= set(plan.slots_of(rank))


@given(plans())
def test_loss_weight__averaging_over_workers_and_rounds_gives_the_mean_over_slots(plan: SlotPlan) -> None:
    losses = [((slot * 7919) % 101) / 7 for slot in range(plan.slots)]
    averaged = sum(
        losses[turn.slot] * plan.loss_weight / (plan.world_size * plan.rounds)
        for rank in range(plan.world_size)
        for turn in plan.turns_of(rank)
        if turn.counts
    )
    assert averaged == pytest.approx(sum(losses) / plan.slots, rel=1e-12)


def test_slot_plan__an_uneven_world() -> None:
    plan = SlotPlan(slots=5, world_size=3)
    assert plan.rounds == 2
    assert plan.turns_of(1) == [Turn(1, counts=True), Turn(4, counts=True)]
    assert plan.turns_of(2) == [Turn(2, counts=True), Turn(2, counts=False)]
    assert plan.loss_weight == 6 / 5


def test_slot_plan__more_workers_than_slots_names_both_and_the_way_out() -> None:
    with pytest.raises(
        TooManyWorkersError, match=r"HS-CONF-007: 9 workers .* only 8 slots .*scaling\.workers to at most 8"
    ):
        SlotPlan(slots=8, world_size=9)
