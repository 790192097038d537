"""What a run is like at one moment: how far it is, where its time went, and what it has cost."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from heliostat.observe.following import RunFollower
from heliostat.observe.goodput import Ledger
from heliostat.observe.spans import Category, Span
from heliostat.observe.status import RunStatus, run_line
from heliostat.storage import Store

UNPAID = frozenset({Category.DOWN, Category.CAPACITY})
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
    """Look at a run once.

    Args:
        run: Its store.
        total_steps: That it is to have.
        price_per_hour: Of one worker.
        is_alive: Whether somebody looks after it now: then the time since its last line counts too.
    """
    follower = RunFollower(run, total_steps)
    follower.look()
    follower.account(time.time() if is_alive else None)
    return glance_of(follower, price_per_hour)


def glance_of(follower: RunFollower, price_per_hour: float | None = None) -> Glance:
    """What is known of a run after the last look; arguments as of ``glance``."""
    hours = worker_hours(follower.spans, follower.workers())
    cost = None if price_per_hour is None else hours * price_per_hour
    preempted = follower.status.interruptions.get("preempted", 0)
    return Glance(follower.status, follower.ledger, hours, preempted, cost)


def worker_hours(spans: Iterable[Span], workers: dict[int, int]) -> float:
    """Hours of workers that a run has held.

    Args:
        spans: What it did at every time.
        workers: Of each attempt, by its number.
    """
    return sum(span.seconds * workers.get(span.attempt, 0) for span in spans if span.category not in UNPAID) / _HOUR_S
