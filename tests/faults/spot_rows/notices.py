"""F4 to F8: nodes that are announced to go, in time, too early, for nothing, two at once, and that of rank 0."""

from collections.abc import Sequence

from faults.frame import Outcome
from faults.plan import parse
from faults.rig import unix
from faults.spot_rig import SpotRig

from heliostat.observe.events import EventType

_REACHED_S = 2.0


def in_time(rig: SpotRig) -> list[Outcome]:
    """F4 and F8: notices of 30 s, and of 8 s for the node of rank 0; saved before the deadline, no step lost."""
    with rig.run("in-time", rig.steps) as live:
        live.carry_out(parse("at step 20 drain node of rank 1 after 30 s; at step 115 drain node of rank 0 after 8 s"))
        run = live.finish()
    rig.whole()
    ok = run.causes() == ["preempted", "preempted"]
    told = [event for event in run.of_type(EventType.ORDER_RECEIVED) if event.fields["order"] == "checkpoint"]
    reached_s = max(
        (unix(event.fields["told_utc"]) - _before(live.done_at, event.time_utc) for event in told), default=9.0
    )
    ok = ok and reached_s <= _REACHED_S
    note = f"every worker knew within {reached_s:.1f} s"
    return [each.noted(note).checked(ok, run.causes()) for each in run.outcomes(live.done_at, rig.is_exact(run))]


def too_early(rig: SpotRig) -> list[Outcome]:
    """F5: announced for in two minutes, gone after one second: a preemption all the same."""
    with rig.run("too-early", rig.steps, "scaling.max_failures=0") as live:
        live.carry_out(parse("at step 60 take node early of rank 1 after 1 s"))
        run = live.finish()
    rig.whole()
    ok = run.causes() == ["preempted"]
    return [each.checked(ok, run.causes()) for each in run.outcomes(live.done_at, rig.is_exact(run))]


def false_alarm(rig: SpotRig) -> list[Outcome]:
    """F6: announced to go, and stays. Ray gives a drained node no more work, so it is left as if it had gone."""
    with rig.run("false-alarm", rig.steps) as live:
        live.carry_out(parse("at step 60 false alarm on node of rank 1 after 6 s"))
        run = live.finish()
    rig.renew()
    ok = run.causes() == ["preempted"]
    return [each.checked(ok, run.causes()) for each in run.outcomes(live.done_at, rig.is_exact(run))]


def two_at_once(rig: SpotRig) -> list[Outcome]:
    """F7: two notices three seconds apart, one restart."""
    with rig.run("two-at-once", rig.steps) as live:
        live.carry_out(parse("at step 60 drain node of rank 1 after 12 s"))
        live.wait_s(3.0)
        live.carry_out(parse("at step 0 drain node of rank 2 after 12 s"))
        run = live.finish()
    rig.whole()
    ok = run.causes() == ["preempted"]
    found = run.outcomes(live.done_at, rig.is_exact(run))
    return [each.noted("two notices").checked(ok, run.causes()) for each in found]


def _before(done_at: Sequence[tuple[object, float]], time_utc: str) -> float:
    return max(at for _, at in done_at if at <= unix(time_utc))
