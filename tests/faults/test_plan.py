import random
from itertools import pairwise

import pytest
from faults.plan import Fault, Kind, parse, random_plan
from hypothesis import given
from hypothesis import strategies as st


def test_parse__a_line_per_fault_in_the_order_of_steps() -> None:
    text = "at step 60 drain node of rank 1 after 3 s; at step 37 kill rank 2\nat step 80 add node"
    assert parse(text) == [
        Fault(37, Kind.KILL_RANK, 2),
        Fault(60, Kind.DRAIN_NODE, 1, 3.0),
        Fault(80, Kind.ADD_NODE),
    ]


def test_parse__names_what_it_does_not_understand() -> None:
    with pytest.raises(ValueError, match="at step 3 eat rank 1"):
        parse("at step 3 eat rank 1")


@given(seed=st.integers(), faults=st.integers(1, 30))
def test_random_plan__can_be_written_down_and_follows_from_its_seed(seed: int, faults: int) -> None:
    plan = random_plan(random.Random(seed), faults, first=20, apart=30, ranks=3)
    assert parse("; ".join(map(str, plan))) == plan
    assert plan == random_plan(random.Random(seed), faults, first=20, apart=30, ranks=3)
    assert sum(fault.interrupts for fault in plan) == faults
    steps = [fault.step for fault in plan]
    assert all(after - before >= 30 for before, after in pairwise(steps))
    gone = sum(fault.kind in (Kind.KILL_NODE, Kind.DRAIN_NODE, Kind.TAKE_EARLY, Kind.FALSE_ALARM) for fault in plan)
    assert gone == sum(fault.kind is Kind.ADD_NODE for fault in plan)
