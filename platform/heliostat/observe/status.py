"""How far a run is: a pure fold over the lines of its events and metrics, and the words for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from heliostat.observe.events import EventType
from heliostat.observe.metrics import is_step
from heliostat.observe.segments import Line

_RATE_STEPS = 64
"""Steps that the ETA's rate is measured over: enough to smooth out checkpoints, few enough to notice a resize."""

_PHASE_AFTER: Mapping[str, str] = {
    EventType.SUPERVISION_STARTED: "waiting for workers",
    EventType.CAPACITY_AWAITED: "waiting for capacity",
    EventType.WORKERS_STARTING: "starting workers",
    EventType.ATTEMPT_STARTED: "starting workers",
    EventType.RESUMED: "resuming",
    EventType.DATA_READY: "training",
    EventType.INTERRUPTED: "recovering",
    EventType.ATTEMPT_ENDED: "attempt ended",
    EventType.GAVE_UP: "gave up",
    EventType.SUPERVISION_ENDED: "stopped",
    EventType.RUN_FINISHED: "finished",
}
_OF_THE_DRIVER = frozenset(
    {
        EventType.SUPERVISION_STARTED,
        EventType.CAPACITY_AWAITED,
        EventType.WORKERS_STARTING,
        EventType.GAVE_UP,
        EventType.SUPERVISION_ENDED,
    }
)
"""Events that hold for the run now, of whichever attempt they speak."""
_LAST_PHASES = frozenset({"finished", "gave up"})
"""What the end of an attempt and of its driver adds nothing to."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the view shows of a run at one instant."""

    total_steps: int
    phase: str = "waiting for workers"
    step: int = 0
    """Steps that are done."""
    attempt: int = 0
    loss: float | None = None
    images_per_s: float | None = None
    workers: int | None = None
    """Workers that there are now, or that are being started."""
    wanted_workers: int | None = None
    """Workers that the run would have if there were room for all."""
    resizing_to: int | None = None
    """Workers of the next attempt, while one ends by plan."""
    interruptions: Mapping[str, int] = field(default_factory=dict)
    """How often each cause has interrupted the run."""
    preemption_notices: int = 0
    goodput: float | None = None
    """Productive part of the time so far, which the ledger knows."""
    recent: tuple[tuple[float, int], ...] = ()
    """(seconds, steps done) of the attempt's last steps, oldest first."""

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step, as `eta_s` estimates them."""
        return eta_s(self.recent, self.total_steps)


def eta_s(recent: Sequence[tuple[float, int]], total: int) -> float | None:
    """Seconds that the rest takes at the recent rate; none while there is no rate yet.

    Args:
        recent: (seconds, things done) observations, oldest first; both grow.
        total: Things to do.
    """
    if not recent:
        return None
    (first_s, first_done), (last_s, last_done) = recent[0], recent[-1]
    if last_done >= total:
        return 0.0
    if last_done <= first_done or last_s <= first_s:
        return None
    return (total - last_done) * (last_s - first_s) / (last_done - first_done)


def after_event(status: RunStatus, line: Line) -> RunStatus:
    """The status after one more line of the event streams."""
    status = _AFTER.get(line["type"], _unchanged)(status, line)
    phase, attempt = _PHASE_AFTER.get(line["type"]), line.get("attempt", 0)
    is_over = line["type"] in (EventType.ATTEMPT_ENDED, EventType.SUPERVISION_ENDED) and status.phase in _LAST_PHASES
    if phase is None or is_over or (attempt < status.attempt and line["type"] not in _OF_THE_DRIVER):
        return status
    recent = () if attempt > status.attempt else status.recent
    workers = 0 if line["type"] == EventType.INTERRUPTED else line.get("workers", status.workers)
    attempt = max(attempt, status.attempt)
    return replace(status, phase=phase, attempt=attempt, workers=workers, resizing_to=None, recent=recent)


def _unchanged(status: RunStatus, line: Line) -> RunStatus:
    return status


def _supervised(status: RunStatus, line: Line) -> RunStatus:
    return replace(status, wanted_workers=line.get("max_workers"))


def _noticed(status: RunStatus, line: Line) -> RunStatus:
    return replace(status, preemption_notices=status.preemption_notices + 1)


def _resizing(status: RunStatus, line: Line) -> RunStatus:
    workers = line.get("workers")
    if line.get("attempt", 0) < status.attempt or workers is None:
        return status
    return replace(status, phase=f"resizing to {_count(workers, 'worker')}", resizing_to=workers)


def _interrupted(status: RunStatus, line: Line) -> RunStatus:
    cause = str(line.get("cause", "unknown"))
    return replace(status, interruptions={**status.interruptions, cause: status.interruptions.get(cause, 0) + 1})


_AFTER: Mapping[str, Callable[[RunStatus, Line], RunStatus]] = {
    EventType.SUPERVISION_STARTED: _supervised,
    EventType.PREEMPTION_NOTICED: _noticed,
    EventType.RESIZE_PLANNED: _resizing,
    EventType.INTERRUPTED: _interrupted,
}
"""What an event changes besides the phase."""


def after_metrics(status: RunStatus, line: Line) -> RunStatus:
    """The status after one more line of the metrics streams; lines of older attempts change nothing."""
    if not is_step(line) or line["attempt"] < status.attempt:
        return status
    done = line["step"] + 1
    begins_anew = line["attempt"] > status.attempt or (status.recent and done <= status.recent[-1][1])
    before = () if begins_anew else status.recent[-_RATE_STEPS:]
    phase = "training" if done < status.total_steps else "finishing"
    return replace(
        status,
        phase=phase if status.resizing_to is None else status.phase,
        step=done,
        attempt=line["attempt"],
        loss=line.get("loss"),
        images_per_s=line.get("images_per_s"),
        workers=line.get("workers", status.workers),
        recent=(*before, (datetime.fromisoformat(line["time_utc"]).timestamp(), done)),
    )


def duration(seconds: float) -> str:
    """Seconds for people: ``9 s``, ``3:07 min``, ``2:05 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def run_details(status: RunStatus) -> str:
    """Loss, speed, workers, interruptions, goodput and ETA of a run, as far as they are known."""
    interruptions = sum(status.interruptions.values())
    parts = [
        None if status.loss is None else f"loss {status.loss:.3f}",
        None if status.images_per_s is None else f"{status.images_per_s:,.0f} images/s",
        _workers(status),
        f"attempt {status.attempt}" if status.attempt > 1 and not interruptions else None,
        _count(interruptions, "interruption") if interruptions else None,
        f"goodput {status.goodput:.0%}" if status.goodput else None,
        f"ETA {duration(status.eta_s)}" if status.eta_s else None,
    ]
    return " · ".join(part for part in parts if part)


def _workers(status: RunStatus) -> str | None:
    now, wanted = status.workers, status.wanted_workers
    if now is None:
        return None
    return _count(now, "worker") if wanted is None or now == wanted else f"{now}/{_count(wanted, 'worker')}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def run_line(status: RunStatus) -> str:
    """The status as one plain line."""
    head = f"{status.phase}: step {status.step:,}/{status.total_steps:,}"
    return " · ".join(part for part in (head, run_details(status)) if part)


def after_lines(status: RunStatus, events: Sequence[Line], metrics: Sequence[Line]) -> RunStatus:
    """The status after new lines of both kinds, taken in the order of their times."""
    steps = [line for line in metrics if is_step(line)]
    for line in sorted([*events, *steps], key=lambda line: str(line["time_utc"])):
        status = after_metrics(status, line) if "step" in line and "type" not in line else after_event(status, line)
    return status
