"""What a run's events and metrics tell of each of its attempts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from heliostat.observe.events import Event, EventType
from heliostat.observe.metrics import StepMetrics

_Line = TypeVar("_Line", StepMetrics, Event)

PLANNED_CAUSES = frozenset({"resize", "preempted"})
"""Causes of interruptions that may have been planned, so that they came after a step and its checkpoint."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a run, as far as it is known."""

    number: int
    workers: int | None
    first_step: int | None
    """Number of the first step that it computed, or is about to."""
    first_step_at_s: float | None
    """When that step began."""
    last_line_at_s: float
    """When the last step of which there is a line ended; minus infinity if there is none."""
    kept_until: float
    """Steps from this one on were computed again by later attempts, or will be; infinity if all count."""
    steps_done: int
    """Steps of the run that were done when it ended, as its end says; 0 if that is not said."""
    source: str | None
    """Where the state came from that it went on with: storage or memory; none if it began anew."""
    ends_between_steps: bool
    """It came to the run's last step, or ended by plan: not in the middle of a step."""


def attempts_of(metrics: Iterable[StepMetrics], events: Iterable[Event]) -> dict[int, Attempt]:
    """All attempts that events or metrics speak of, by number; in whichever order they are given."""
    lines_of = _by_attempt(metrics)
    events_of = _by_attempt(events)
    numbers = sorted(lines_of.keys() | events_of.keys())
    first_steps = {number: _first_step(lines_of.get(number, []), events_of.get(number, [])) for number in numbers}
    found = {}
    kept_until = next_first = math.inf
    for number in reversed(numbers):
        first_step = first_steps[number]
        lines, happened = lines_of.get(number, []), events_of.get(number, [])
        found[number] = _attempt(number, first_step, kept_until, next_first, lines, happened)
        next_first = next_first if first_step is None else first_step
        # Who failed before the end of a step computed nothing again: the next attempt decides what was kept.
        if first_step is not None and (number in lines_of or math.isinf(kept_until)):
            kept_until = min(kept_until, first_step)
    return {number: found[number] for number in numbers}


def seconds_of(time_utc: str) -> float:
    """Seconds since 1970 of a line's time."""
    return datetime.fromisoformat(time_utc).timestamp()


def measured_s(line: StepMetrics) -> float:
    """Seconds of all phases that a line measured."""
    return sum(line.seconds.values())


def _by_attempt(lines: Iterable[_Line]) -> dict[int, list[_Line]]:
    found: dict[int, list[_Line]] = {}
    for line in lines:
        found.setdefault(line.attempt, []).append(line)
    return found


def _attempt(
    number: int,
    first_step: int | None,
    kept_until: float,
    next_first: float,
    lines: Sequence[StepMetrics],
    events: Sequence[Event],
) -> Attempt:
    fields = {
        kind: [event.fields for event in events if event.type == kind]
        for kind in (EventType.ATTEMPT_STARTED, EventType.RESUMED, EventType.INTERRUPTED, EventType.RUN_FINISHED)
    }
    ends = fields[EventType.INTERRUPTED] + fields[EventType.RUN_FINISHED]
    steps_done = max((_steps(each) or 0 for each in ends), default=0)
    return Attempt(
        number=number,
        workers=max((each["workers"] for each in fields[EventType.ATTEMPT_STARTED] if "workers" in each), default=None),
        first_step=first_step,
        first_step_at_s=_first_step_at_s(lines, events),
        last_line_at_s=max((seconds_of(line.time_utc) for line in lines), default=-math.inf),
        kept_until=kept_until,
        steps_done=steps_done,
        source=max((str(each.get("source", "storage")) for each in fields[EventType.RESUMED]), default=None),
        ends_between_steps=_is_complete(events) or (_is_by_plan(events) and next_first >= steps_done),
    )


def _first_step(lines: Sequence[StepMetrics], events: Sequence[Event]) -> int | None:
    told = [event for event in events if event.type in (EventType.RESUMED, EventType.DATA_READY)]
    steps = [step for event in told if (step := _steps(event.fields)) is not None]
    return min(steps or [line.step for line in lines], default=None)


def _first_step_at_s(lines: Sequence[StepMetrics], events: Sequence[Event]) -> float | None:
    ready = [seconds_of(event.time_utc) for event in events if event.type == EventType.DATA_READY]
    return min(ready or [seconds_of(line.time_utc) - measured_s(line) for line in lines], default=None)


def _is_complete(events: Sequence[Event]) -> bool:
    return any(
        event.type == EventType.RUN_FINISHED
        or (event.type == EventType.ATTEMPT_ENDED and event.fields.get("cause") == "completed")
        for event in events
    )


def _is_by_plan(events: Sequence[Event]) -> bool:
    return any(event.type == EventType.RESIZE_PLANNED for event in events) and any(
        event.type == EventType.INTERRUPTED and event.fields.get("cause") in PLANNED_CAUSES for event in events
    )


def _steps(fields: Mapping[str, object]) -> int | None:
    step = fields.get("step")
    return step if isinstance(step, int) else None
