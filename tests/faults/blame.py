"""Which fault is to blame for which interruption of a run, and what became of each fault. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from faults.frame import Outcome, seconds_to_recover
from faults.plan import Fault, Kind

from heliostat.elastic.causes import Cause
from heliostat.observe.interruptions import Interruption

MAY_LOSE_STEPS = 10
"""By what comes without notice: two intervals of snapshots in memory. What is announced or planned loses none."""
NEXT_STEP_LIMIT_S = 30.0
"""From the loss of a node to the end of the next step, at most."""
_KINDS: Mapping[str, frozenset[Kind]] = MappingProxyType(
    {
        Cause.WORKER_CRASH: frozenset({Kind.KILL_RANK}),
        Cause.HANG: frozenset({Kind.STOP_RANK}),
        # A node may be gone before anybody has seen its notice.
        Cause.NODE_LOST: frozenset({Kind.KILL_NODE, Kind.TAKE_EARLY}),
        Cause.PREEMPTED: frozenset({Kind.DRAIN_NODE, Kind.FALSE_ALARM, Kind.TAKE_EARLY}),
    }
)
"""What is done, by what the run says of it."""

DoneAt = Sequence[tuple[Fault, float]]
"""What was done to a run in order, and in Unix time when."""


def explained(seen: Sequence[Interruption], done_at: DoneAt) -> list[int | None]:
    """Index of the fault that explains each interruption; None for one that nothing explains: a false one.

    A fault explains one interruption: the first that says what was done last of its kind. A resize is explained by a
    node that came since the interruption before: who began later has counted it. Or it is growth back after the loss of
    a node, right after which the run may have begun with fewer workers than there was room for.
    """
    found: list[int | None] = []
    for number, each in enumerate(seen):
        if each.cause == Cause.RESIZE:
            since_s = seen[number - 1].at_s if number else float("-inf")
            index = _newest(done_at, frozenset({Kind.ADD_NODE}), since_s, each.at_s)
            if index is None and number and seen[number - 1].cause in (Cause.NODE_LOST, Cause.PREEMPTED):
                index = found[-1]
        else:
            index = _newest(done_at, _KINDS.get(each.cause, frozenset()), float("-inf"), each.at_s)
            index = None if index in found else index
        found.append(index)
    return found


def outcomes(
    seen: Sequence[Interruption], step_ends: Sequence[float], done_at: DoneAt, is_exact: bool
) -> list[Outcome]:
    """What became of each fault that was done to one run; nodes that were added are no faults.

    Args:
        seen: All interruptions of the run, in order.
        step_ends: Unix times at which its steps ended, in order.
        done_at: What was done.
        is_exact: Whether it ended as if nothing had been done.
    """
    by = explained(seen, done_at)
    faults = [(index, at) for index, (fault, at) in enumerate(done_at) if fault.interrupts]
    # What happens until the next fault is told with this one, whoever is to blame.
    begins = [float("-inf"), *(at for _, at in faults[1:])]
    ends = [*begins[1:], float("inf")]
    found = []
    for (index, at), begin, end in zip(faults, begins, ends, strict=True):
        fault = done_at[index][0]
        meanwhile = [(each, who) for each, who in zip(seen, by, strict=True) if begin <= each.at_s < end]
        own = next((each for each, who in zip(seen, by, strict=True) if who == index), None)
        recover_s = _recovered_s(step_ends, fault, at, own, end)
        false = [each.cause for each, who in meanwhile if who is None]
        wrong = [] if is_exact else ["another result than the undisturbed run"]
        wrong += filter(
            None, (_lost_too_much(each, None if who is None else done_at[who][0]) for each, who in meanwhile)
        )
        wrong += filter(None, [_took_too_long(fault, recover_s)])
        outcome = Outcome(
            fault=str(fault),
            survived=not wrong,
            is_exact=is_exact,
            steps_lost=sum(each.steps_lost or 0 for each, _ in meanwhile),
            detect_s=None if own is None else round(own.at_s - at, 1),
            recover_s=recover_s,
            false_restarts=len(false),
            note="; ".join(wrong),
        )
        found.append(outcome.noted(f"no fault explains: {', '.join(false)}" if false else ""))
    return found


def _newest(done_at: DoneAt, kinds: frozenset[Kind], since_s: float, until_s: float) -> int | None:
    fitting = [index for index, (fault, at) in enumerate(done_at) if fault.kind in kinds and since_s < at <= until_s]
    return max(fitting, default=None)


def _lost_too_much(each: Interruption, fault: Fault | None) -> str | None:
    is_planned = each.cause == Cause.RESIZE or (fault is not None and fault.is_announced)
    limit = 0 if is_planned else MAY_LOSE_STEPS
    if each.steps_lost is None:
        return f"nobody knows how many steps {each.cause} lost"
    return f"{each.cause} lost {each.steps_lost} steps, not {limit}" if each.steps_lost > limit else None


def _took_too_long(fault: Fault, recover_s: float | None) -> str | None:
    if not fault.takes_node or recover_s is None or recover_s <= fault.seconds + NEXT_STEP_LIMIT_S:
        return None
    return f"{recover_s:.0f} s to the next step, not {NEXT_STEP_LIMIT_S:g} s"


def _recovered_s(
    step_ends: Sequence[float], fault: Fault, at: float, own: Interruption | None, until: float
) -> float | None:
    """Seconds until the end of the first step after the interruption."""
    if own is None:
        return seconds_to_recover(step_ends, at, until)
    # What was announced is planned around: it harms from the moment when the attempt is stopped.
    since = own.at_s if fault.is_announced else at
    return next((end - since for end in step_ends if end > own.at_s), None)
