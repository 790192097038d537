"""Following a run through its store: what is new at each look, folded into what is known; nothing is read twice."""

from collections.abc import Sequence
from dataclasses import replace

from heliostat.observe.attempts import attempts_of
from heliostat.observe.events import EVENTS_PREFIX, Event
from heliostat.observe.goodput import Ledger, ledger_of, thinned
from heliostat.observe.metrics import METRICS_PREFIX, StepMetrics, is_step
from heliostat.observe.segments import Line, SegmentTail
from heliostat.observe.spans import Span
from heliostat.observe.status import RunStatus, after_lines
from heliostat.observe.timeline import timeline
from heliostat.storage import Store

_LEDGER_LINES = 512
"""Lines of steps to which those of a long run are thinned: its timeline is some 20 ms of arithmetic."""


class RunFollower:
    """What is known of one run after the looks so far. Not for several threads at once.

    Args:
        store: The store of the run.
        total_steps: Steps of the whole run.
    """

    def __init__(self, store: Store, total_steps: int) -> None:
        self.status = RunStatus(total_steps)
        self.happened: list[Event] = []
        """All events."""
        self.steps: list[StepMetrics] = []
        """Lines of steps, thinned: their seconds are those of all."""
        self.spans: Sequence[Span] = ()
        self.ledger: Ledger = ledger_of(())
        self.has_news = False
        """Whether the last look has found anything."""
        self._events = SegmentTail(store, EVENTS_PREFIX)
        self._metrics = SegmentTail(store, METRICS_PREFIX)

    def look(self) -> list[Line]:
        """Read what is new; the new lines of steps. ``account`` makes sense of it.

        Raises:
            HeliostatError: what the store has to say; the next look reads the same again.
        """
        events, metrics = self._events.poll(), [line for line in self._metrics.poll() if is_step(line)]
        self.happened += [Event.from_line(line) for line in events]
        self.steps += [StepMetrics.from_line(line) for line in metrics]
        if len(self.steps) > 2 * _LEDGER_LINES:
            self.steps = thinned(self.steps, _LEDGER_LINES)
        self.status = after_lines(self.status, events, metrics)
        self.has_news = bool(events or metrics)
        return metrics

    def account(self, now_s: float | None = None) -> None:
        """Say where the time went.

        Args:
            now_s: Seconds since 1970 up to which a run is followed that somebody looks after; None for others.
        """
        self.spans = timeline(self.steps, self.happened, now_s)
        self.ledger = ledger_of(self.spans)
        self.status = replace(self.status, goodput=self.ledger.goodput)

    def workers(self) -> dict[int, int]:
        """Of each attempt, by its number, as far as they are known."""
        return {number: each.workers or 0 for number, each in attempts_of(self.steps, self.happened).items()}
