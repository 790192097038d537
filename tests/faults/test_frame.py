import json
import math

import pytest
from faults.frame import Outcome, is_passed, seconds_to_recover, table, totals


@pytest.mark.parametrize(
    ("step_ends", "fault_end", "until", "expected"),
    [
        ([1, 2, 3], 5, math.inf, None),  # no step after it
        ([1, 2, 12, 13], 10, math.inf, 2.0),  # a fault from 3 to 10: the step that waited for it ended at 12
        ([1, 2, 3, 9, 10], 2.5, math.inf, 6.5),  # steps that were ready when the fault came are no recovery
        ([1, 2, 3, 4, 20], 2.5, 3.5, 0.5),  # the next fault's wait is not this one's
    ],
)
def test_seconds_to_recover__is_the_step_that_was_delayed_most(
    step_ends: list[float], fault_end: float, until: float, expected: float | None
) -> None:
    assert seconds_to_recover(step_ends, fault_end, until) == expected


def test_totals__sum_what_is_known() -> None:
    outcomes = [
        Outcome("a", survived=True, is_exact=True, recover_s=2.0, goodput=0.9),
        Outcome("b", survived=True, is_exact=True, recover_s=5.0, false_restarts=1),
        Outcome("c", survived=True, is_exact=True),
    ]
    assert json.loads(totals(outcomes)) == {
        "faults": 3,
        "survived": 3,
        "samples_lost": 0,
        "samples_repeated": 0,
        "false_restarts": 1,
        "recovery_s": {"p50": 3.5, "max": 5.0},
        "goodput": 0.9,
    }


def test_totals__what_one_fault_does_not_know_is_not_called_zero() -> None:
    outcomes = [Outcome("a", survived=True, is_exact=True), Outcome("b", survived=False, is_exact=False)]
    found = json.loads(totals(outcomes))
    assert (found["survived"], found["samples_lost"], found["samples_repeated"]) == (1, None, None)
    assert found["recovery_s"] == {"p50": None, "max": None}
    assert found["goodput"] is None


def test_table__has_a_line_per_fault() -> None:
    outage = Outcome("outage", survived=True, is_exact=True, detect_s=15.04)
    lines = table([outage, Outcome("x", survived=False, is_exact=False)]).split("\n")
    assert [line.split() for line in lines[1:]] == [
        ["outage", "yes", "0", "0", "0", "15.0", "-"],
        ["x", "NO", "-", "-", "0", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("survived", "false_restarts", "expected"), [(True, 0, True), (False, 0, False), (True, 1, False)]
)
def test_is_passed__needs_every_fault_survived_and_no_false_restart(
    survived: bool, false_restarts: int, expected: bool
) -> None:
    good = Outcome("a", survived=True, is_exact=True)
    assert is_passed([good, Outcome("b", survived, is_exact=True, false_restarts=false_restarts)]) is expected


def test_checked__what_is_wrong_is_told_beside_what_was_noted_before() -> None:
    found = Outcome("a", survived=True, is_exact=True).noted("two of them").checked(True, "no matter")
    assert (found.survived, found.note) == (True, "two of them")
    found = found.checked(False, ["hang"], 3)
    assert (found.survived, found.note, found.lost) == (False, "two of them; seen: ['hang'], 3", 0)
