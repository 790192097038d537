"""Where the time of a run went: pure arithmetic over its metrics and events."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from heliostat.observe.events import Event, EventType
from heliostat.observe.metrics import PHASES, StepMetrics, merged_curve

START_UP = "start_up"
RECOMPUTED = "recomputed"
OTHER = "other"

SHARES = {
    **{name.removesuffix("_s"): meaning for name, meaning in PHASES.items()},
    START_UP: "start of an attempt until its first step",
    RECOMPUTED: "steps that a later attempt computed again",
    OTHER: "not measured",
}
"""The names of the shares and what they mean, in the order in which they are shown."""


def wall_clock_s(events: Sequence[Event]) -> float:
    """Seconds between the first and the last event; zero without events."""
    times = [_seconds(event.time_utc) for event in events]
    return max(times) - min(times) if times else 0.0


def time_shares(metrics: Sequence[StepMetrics], events: Sequence[Event], wall_s: float) -> dict[str, float]:
    """Seconds of the wall clock by what they were spent on; the keys are those of `SHARES`.

    Shares are never negative and sum to ``wall_s``. Where the measured parts exceed the wall clock (phases that
    overlap, clocks of different machines), all are scaled down alike.

    Args:
        metrics: All lines of all attempts, those computed twice included.
        events: All events of the run.
        wall_s: Seconds that the run took.
    """
    kept = merged_curve(metrics)
    final = {(line.step, line.attempt) for line in kept}
    shares = {name.removesuffix("_s"): sum(line.seconds.get(name, 0.0) for line in kept) for name in PHASES}
    shares[START_UP] = _start_up_s(metrics, events)
    shares[RECOMPUTED] = sum(_step_s(line) for line in metrics if (line.step, line.attempt) not in final)
    measured = sum(shares.values())
    if measured > wall_s:
        shares = {name: seconds / measured * wall_s for name, seconds in shares.items()}
        measured = wall_s
    return {**shares, OTHER: wall_s - measured}


def _start_up_s(metrics: Iterable[StepMetrics], events: Sequence[Event]) -> float:
    started = {event.attempt: _seconds(event.time_utc) for event in events if event.type == EventType.ATTEMPT_STARTED}
    # An attempt that failed before its first step spent all its time starting up.
    ready = {event.attempt: _seconds(event.time_utc) for event in events if event.type == EventType.ATTEMPT_ENDED}
    for line in metrics:
        begun = _seconds(line.time_utc) - _step_s(line)
        ready[line.attempt] = min(begun, ready.get(line.attempt, begun))
    return sum(max(0.0, ready[attempt] - time) for attempt, time in started.items() if attempt in ready)


def _step_s(line: StepMetrics) -> float:
    return sum(line.seconds.values())


def _seconds(time_utc: str) -> float:
    return datetime.fromisoformat(time_utc).timestamp()
