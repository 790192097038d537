import pytest
from faults.blame import explained, outcomes
from faults.plan import Fault, parse

from heliostat.observe.interruptions import Interruption


def _seen(*told: tuple[float, str], lost: int | None = 0) -> list[Interruption]:
    return [Interruption(at_s, 1, cause, (), 50, lost, 3.0, "memory") for at_s, cause in told]


def _done(text: str) -> list[tuple[Fault, float]]:
    """A plan of which each line is carried out at the second of its step."""
    return [(fault, float(fault.step)) for fault in parse(text)]


@pytest.mark.parametrize(
    ("plan", "told", "expected"),
    [
        ("at step 10 kill rank 0", [(11, "worker_crash")], [0]),
        ("at step 10 stop rank 0", [(41, "hang")], [0]),
        ("at step 10 kill node of rank 0", [(12, "node_lost")], [0]),
        ("at step 10 drain node of rank 0 after 8 s", [(16, "preempted")], [0]),
        ("at step 10 false alarm on node of rank 0 after 8 s", [(16, "preempted")], [0]),
        ("at step 10 take node early of rank 0 after 1 s", [(12, "preempted")], [0]),
        ("at step 10 take node early of rank 0 after 1 s", [(12, "node_lost")], [0]),
        # Another cause than that of the fault, one that came before it, or a second one.
        ("at step 10 kill rank 0", [(11, "hang")], [None]),
        ("at step 10 kill node of rank 0", [(11, "worker_crash")], [None]),
        ("at step 10 kill node of rank 0", [(12, "node_lost"), (15, "start_failed")], [0, None]),
        ("at step 10 kill rank 0", [(9, "worker_crash")], [None]),
        ("at step 10 kill rank 0", [(11, "worker_crash"), (20, "worker_crash")], [0, None]),
        # A fault that interrupted nothing hides no other interruption.
        ("at step 10 kill rank 0; at step 30 drain node of rank 1", [(31, "preempted"), (40, "hang")], [1, None]),
        ("at step 10 kill rank 0; at step 30 kill rank 1", [(31, "worker_crash"), (40, "worker_crash")], [1, None]),
        # Two notices and one restart; the notice of a node that goes later than another worker dies.
        ("at step 10 drain node of rank 0; at step 13 drain node of rank 1", [(18, "preempted")], [1]),
        ("at step 10 drain node of rank 0; at step 13 kill rank 1", [(14, "worker_crash"), (18, "preempted")], [1, 0]),
        # Growth: with a node that came since the interruption before, or back after a loss.
        ("at step 10 add node", [(15, "resize")], [0]),
        ("at step 10 add node", [(15, "resize"), (20, "resize")], [0, None]),
        ("at step 10 add node; at step 17 add node", [(15, "resize"), (20, "resize")], [0, 1]),
        ("at step 10 kill node of rank 0; at step 20 add node", [(11, "node_lost"), (25, "resize")], [0, 1]),
        ("at step 10 kill node of rank 0", [(11, "node_lost"), (25, "resize")], [0, 0]),
        ("at step 10 kill node of rank 0", [(11, "node_lost"), (25, "resize"), (35, "resize")], [0, 0, None]),
        ("at step 10 kill rank 0", [(11, "worker_crash"), (25, "resize")], [0, None]),
        ("at step 10 kill rank 0", [(5, "resize"), (11, "worker_crash")], [None, 0]),
        ("at step 10 kill rank 0", [(5, "node_lost"), (8, "resize")], [None, None]),
        ("at step 10 kill rank 0", [], []),
    ],
)
def test_explained__each_interruption_has_its_fault_or_is_false(
    plan: str, told: list[tuple[float, str]], expected: list[int | None]
) -> None:
    assert explained(_seen(*told), _done(plan)) == expected


@pytest.mark.parametrize(
    ("plan", "cause", "lost", "survived"),
    [
        ("at step 10 kill rank 0", "worker_crash", 10, True),
        ("at step 10 kill rank 0", "worker_crash", 11, False),
        ("at step 10 kill rank 0", "worker_crash", None, False),
        ("at step 10 take node early of rank 0 after 1 s", "preempted", 10, True),
        ("at step 10 drain node of rank 0 after 5 s", "preempted", 0, True),
        ("at step 10 drain node of rank 0 after 5 s", "preempted", 1, False),
        ("at step 5 add node; at step 30 kill rank 0", "resize", 0, True),
        ("at step 5 add node; at step 30 kill rank 0", "resize", 1, False),
    ],
)
def test_outcomes__limit_the_steps_lost(plan: str, cause: str, lost: int | None, survived: bool) -> None:
    (found,) = outcomes(_seen((12, cause), lost=lost), [9, 14, 15], _done(plan), True)
    assert (found.survived, found.steps_lost, found.false_restarts) == (survived, lost or 0, 0)
    assert bool(found.note) is not survived


@pytest.mark.parametrize(
    ("plan", "cause", "next_step_at", "survived"),
    [
        ("at step 10 kill node of rank 0", "node_lost", 40.0, True),
        ("at step 10 kill node of rank 0", "node_lost", 40.5, False),
        ("at step 10 take node early of rank 0 after 2 s", "preempted", 42.0, True),
        ("at step 10 take node early of rank 0 after 2 s", "preempted", 42.5, False),
        ("at step 10 kill rank 0", "worker_crash", 60.0, True),
    ],
)
def test_outcomes__limit_the_time_from_the_loss_of_a_node_to_the_next_step(
    plan: str, cause: str, next_step_at: float, survived: bool
) -> None:
    (found,) = outcomes(_seen((13, cause)), [9, next_step_at], _done(plan), True)
    assert (found.survived, found.recover_s, found.detect_s) == (survived, next_step_at - 10, 3)


def test_outcomes__what_nothing_explains_is_told_with_the_fault_before_it() -> None:
    plan = _done("at step 10 kill rank 0; at step 20 add node; at step 30 kill node of rank 1")
    seen = _seen((5, "hang"), (11, "worker_crash"), (22, "resize"), (27, "start_failed"), (31, "node_lost"), lost=0)
    first, second = outcomes(seen, [9, 14, 24, 28, 33], plan, True)
    assert (first.false_restarts, first.note) == (2, "no fault explains: hang, start_failed")
    assert (second.false_restarts, second.note, second.recover_s) == (0, "", 3)
    assert first.survived
    assert second.survived


def test_outcomes__of_a_wrong_result_nobody_knows_what_was_lost() -> None:
    (found,) = outcomes(_seen((11, "worker_crash")), [12], _done("at step 10 kill rank 0"), False)
    assert (found.survived, found.lost, found.repeated) == (False, None, None)


def test_outcomes__of_a_fault_that_interrupted_nothing() -> None:
    (found,) = outcomes([], [9, 10.5, 14], _done("at step 10 kill rank 0"), True)
    assert (found.detect_s, found.recover_s, found.steps_lost) == (None, 4, 0)
