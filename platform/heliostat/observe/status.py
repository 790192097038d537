"""How far a run is: a pure fold over the lines of its events and metrics, and the words for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from heliostat.observe.events import EventType
from heliostat.observe.metrics import is_step
from heliostat.observe.segments import Line

_RATE_STEPS = 64
"""Steps that the ETA's rate is measured over: enough to smooth out checkpoints, few enough to notice a resize."""

_PHASE_AFTER: dict[str, str] = {
    EventType.ATTEMPT_STARTED: "starting workers",
    EventType.RESUMED: "resuming",
    EventType.DATA_READY: "training",
    EventType.ATTEMPT_ENDED: "attempt ended",
    EventType.RUN_FINISHED: "finished",
}


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
    phase, attempt = _PHASE_AFTER.get(line["type"]), line.get("attempt", 0)
    if phase is None or attempt < status.attempt:
        return status
    recent = () if attempt > status.attempt else status.recent
    workers = line.get("workers", status.workers)
    return replace(status, phase=phase, attempt=attempt, workers=workers, recent=recent)


def after_metrics(status: RunStatus, line: Line) -> RunStatus:
    """The status after one more line of the metrics streams; lines of older attempts change nothing."""
    if not is_step(line) or line["attempt"] < status.attempt:
        return status
    done = line["step"] + 1
    begins_anew = line["attempt"] > status.attempt or (status.recent and done <= status.recent[-1][1])
    before = () if begins_anew else status.recent[-_RATE_STEPS:]
    return replace(
        status,
        phase="training" if done < status.total_steps else "finishing",
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
    """Loss, speed, workers and ETA of a run, as far as they are known."""
    parts = [
        None if status.loss is None else f"loss {status.loss:.3f}",
        None if status.images_per_s is None else f"{status.images_per_s:,.0f} images/s",
        None if status.workers is None else f"{status.workers} worker{'s' if status.workers != 1 else ''}",
        f"attempt {status.attempt}" if status.attempt > 1 else None,
        f"ETA {duration(status.eta_s)}" if status.eta_s else None,
    ]
    return " · ".join(part for part in parts if part)


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
