"""One look at a run through its store: how far it is, where its time went, and what it has cost."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from heliostat.observe.attempts import attempts_of
from heliostat.observe.events import EVENTS_PREFIX, Event
from heliostat.observe.goodput import Ledger, ledger_of
from heliostat.observe.metrics import METRICS_PREFIX, StepMetrics, is_step
from heliostat.observe.segments import SegmentTail
from heliostat.observe.spans import Category, Span
from heliostat.observe.status import RunStatus, after_lines, run_line
from heliostat.observe.timeline import timeline
from heliostat.storage import Store

_UNPAID = frozenset({Category.DOWN, Category.CAPACITY})
"""Time in which the run holds no workers."""
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at a run has found.

    Attributes:
        status: How far it is.
        ledger: Where its time went.
        worker_hours: Hours of workers that it held, steps and pauses alike.
        preemptions: How often nodes were taken from it.
        cost: In the currency of the price; none without a price.
    """

    status: RunStatus
    ledger: Ledger
    worker_hours: float
    preemptions: int
    cost: float | None

    @property
    def line(self) -> str:
        """All of it as one line."""
        parts = [run_line(self.status)]
        parts += [f"{self.preemptions} preempted"] if self.preemptions else []
        parts += [f"{self.worker_hours:,.1f} worker hours"] if self.cost is None else [f"cost {self.cost:,.2f}"]
        return " · ".join(parts)


def glance(run: Store, total_steps: int, price_per_hour: float | None = None, *, is_alive: bool = False) -> Glance:
    """Look at a run.

    Args:
        run: Its store.
        total_steps: That it is to have.
        price_per_hour: Of one worker.
        is_alive: Whether somebody looks after it now: then the time since its last line counts too.
    """
    events, metrics = SegmentTail(run, EVENTS_PREFIX).poll(), SegmentTail(run, METRICS_PREFIX).poll()
    happened = [Event.from_line(line) for line in events]
    steps = [StepMetrics.from_line(line) for line in metrics if is_step(line)]
    spans = timeline(steps, happened, time.time() if is_alive else None)
    spent = ledger_of(spans)
    status = replace(after_lines(RunStatus(total_steps), events, metrics), goodput=spent.goodput)
    hours = worker_hours(spans, {number: each.workers or 0 for number, each in attempts_of(steps, happened).items()})
    cost = None if price_per_hour is None else hours * price_per_hour
    return Glance(status, spent, hours, status.interruptions.get("preempted", 0), cost)


def worker_hours(spans: Iterable[Span], workers: dict[int, int]) -> float:
    """Hours of workers that a run has held.

    Args:
        spans: What it did at every time.
        workers: Of each attempt, by its number.
    """
    return sum(span.seconds * workers.get(span.attempt, 0) for span in spans if span.category not in _UNPAID) / _HOUR_S
