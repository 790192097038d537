"""Where the time of a run went: every second of its wall clock in one category, and the share that brought it on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from heliostat.observe.events import Event
from heliostat.observe.metrics import PHASES, StepMetrics
from heliostat.observe.spans import Category, Span
from heliostat.observe.timeline import timeline


@dataclass(frozen=True, slots=True)
class Ledger:
    """Seconds of a run by what they were spent on."""

    seconds: Mapping[Category, float]
    """All categories, in their order; none negative."""

    @property
    def wall_s(self) -> float:
        """Seconds of the wall clock: the sum of all categories."""
        return math.fsum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """Productive part of the time in which somebody looked after the run; none while there is no such time."""
        up_s = math.fsum(seconds for category, seconds in self.seconds.items() if category != Category.DOWN)
        return self.seconds[Category.PRODUCTIVE] / up_s if up_s > 0 else None


def ledger(metrics: Iterable[StepMetrics], events: Iterable[Event], now_s: float | None = None) -> Ledger:
    """The ledger of a run; the arguments are those of `timeline`."""
    return ledger_of(timeline(metrics, events, now_s))


def ledger_of(spans: Iterable[Span]) -> Ledger:
    """The ledger of a timeline."""
    found: dict[Category, list[float]] = {category: [] for category in Category}
    for span in spans:
        found[span.category].append(span.seconds)
    return Ledger({category: math.fsum(seconds) for category, seconds in found.items()})


def thinned(metrics: Sequence[StepMetrics], at_most: int) -> list[StepMetrics]:
    """The same work in fewer lines, for the ledger of a long run that goes on: each stands for several steps.

    Neighbours of one attempt are joined, so that their seconds add up; other values than seconds are left out. A few
    more lines than ``at_most`` may remain if there are many attempts.

    Args:
        metrics: Lines, those of an attempt in the order of its steps.
        at_most: Lines wanted.
    """
    if len(metrics) <= at_most:
        return list(metrics)
    per_line = -(-len(metrics) // max(1, at_most))
    joined = []
    for _, lines in groupby(metrics, key=lambda line: line.attempt):
        same = list(lines)
        joined += [_joined(same[start : start + per_line]) for start in range(0, len(same), per_line)]
    return joined


def _joined(lines: Sequence[StepMetrics]) -> StepMetrics:
    last = lines[-1]
    seconds = {name: sum(line.seconds.get(name, 0.0) for line in lines) for name in PHASES}
    return StepMetrics(last.step, last.attempt, last.time_utc, {}, seconds)
