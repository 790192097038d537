"""The interruptions of a run, one row each."""

from collections.abc import Iterable
from dataclasses import dataclass

from heliostat.observe.attempts import Attempt, attempts_of, seconds_of
from heliostat.observe.events import Event, EventType
from heliostat.observe.metrics import StepMetrics


@dataclass(frozen=True, slots=True)
class Interruption:
    """What interrupted a run, and how it went on."""

    at_s: float
    """Seconds since 1970."""
    attempt: int
    cause: str
    ranks: tuple[int, ...]
    """The workers that it hit, as far as they are known."""
    steps_done: int | None
    """Steps of the run that were done then."""
    steps_lost: int | None
    """Steps that were computed again; none if that is not known, or the run has not gone on."""
    to_next_step_s: float | None
    """Seconds until the next step of the run began; none if none did."""
    source: str | None
    """Where the next step's state came from: storage or memory; none if there was no such step, or it was the first."""


def interruptions(metrics: Iterable[StepMetrics], events: Iterable[Event]) -> list[Interruption]:
    """All interruptions of a run in the order of their times.

    Of attempts that failed one after another without a step, only the first lost steps; all of them waited for the same
    next step. A start of which no attempt comes is told under the number of the attempt before it.

    Args:
        metrics: All lines of all attempts.
        events: All events of the run.
    """
    metrics, events = list(metrics), list(events)
    attempts = attempts_of(metrics, events)
    found = [event for event in events if event.type == EventType.INTERRUPTED]
    told = _steps_told(metrics)
    in_order = sorted(found, key=lambda event: (event.time_utc, event.attempt))
    ended_utc: dict[int, str] = {}
    for event in in_order:
        ended_utc.setdefault(event.attempt, event.time_utc)
    rows = [
        _row(event, attempts, told.get(event.attempt, 0), event.time_utc == ended_utc[event.attempt])
        for event in in_order
    ]
    return list(dict.fromkeys(rows))


def _steps_told(metrics: Iterable[StepMetrics]) -> dict[int, int]:
    """Steps of the run that were done at the end of each attempt, as far as its lines tell."""
    done: dict[int, int] = {}
    for line in metrics:
        done[line.attempt] = max(done.get(line.attempt, 0), line.step + 1)
    return done


def _row(event: Event, attempts: dict[int, Attempt], told: int, is_end: bool) -> Interruption:
    at_s = seconds_of(event.time_utc)
    later = (attempts[number] for number in sorted(attempts) if number > event.attempt)
    after = next((each for each in later if each.first_step_at_s is not None), None)
    done = event.fields.get("step")
    ended = attempts[event.attempt]
    # Who looks after the run hears of a step a little later than it is done, and may not hear of the last one. An
    # attempt that failed before it knew where to go on knows nothing of steps.
    steps_done = max(done, told) if isinstance(done, int) and ended.first_step is not None else None
    first_step = None if after is None else after.first_step
    # Who came to no step has lost none: those were lost by the attempt before.
    has_worked = is_end and ended.first_step_at_s is not None
    lost = None if first_step is None else 0
    if has_worked and first_step is not None:
        lost = None if steps_done is None else max(0, steps_done - first_step)
    ranks = event.fields.get("ranks") or ()
    return Interruption(
        at_s=at_s,
        attempt=event.attempt,
        cause=str(event.fields.get("cause", "unknown")),
        ranks=tuple(ranks) if isinstance(ranks, list | tuple) else (),
        steps_done=steps_done,
        steps_lost=lost,
        to_next_step_s=_gap_s(at_s, after),
        source=None if after is None else after.source,
    )


def _gap_s(at_s: float, after: Attempt | None) -> float | None:
    begun_s = None if after is None else after.first_step_at_s
    return None if begun_s is None else max(0.0, begun_s - at_s)
