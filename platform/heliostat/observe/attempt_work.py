"""The time in which one attempt goes from step to step, cut by what the steps were worth."""

from collections.abc import Iterator, Mapping

from heliostat.observe.attempts import Attempt, measured_s
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.spans import Category, Span, cut

_FIELD_OF = {
    Category.CHECKPOINT: "checkpoint_s",
    Category.DATA_WAIT: "data_wait_s",
    Category.EVALUATION: "evaluation_s",
}
"""Phases that are no progress, in the order in which a step has them."""


class AttemptWork:
    """Cuts the time of one attempt at its lines, which are given in the order of their times.

    Args:
        attempt: What is known of it.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._next_step = attempt.first_step
        self._steps, self._seconds = 0, 0.0

    def line(self, begin_s: float, end_s: float, line: StepMetrics) -> Iterator[Span]:
        """The time up to a line, which may stand for several steps."""
        first = line.step if self._next_step is None else min(self._next_step, line.step)
        parts = {category: line.seconds.get(field, 0.0) for category, field in _FIELD_OF.items()}
        if not self._steps:
            # The first line has also measured the wait for the first images, before the step began.
            before_s = max(0.0, measured_s(line) - (end_s - begin_s))
            parts[Category.DATA_WAIT] = max(0.0, parts[Category.DATA_WAIT] - before_s)
        yield from self._valued(begin_s, end_s, first, line.step + 1, parts)
        self._next_step = max(self._next_step or 0, line.step + 1)
        self._steps += line.step + 1 - first
        self._seconds += end_s - begin_s

    def broken_off(self, begin_s: float, end_s: float) -> Iterator[Span]:
        """The time from the last line to the end of the attempt: steps without a line, and what came after them."""
        next_step = self._next_step or 0
        # Where a later attempt goes on from is done, even if no line and no end says so.
        kept = self._attempt.kept_until
        done = max(next_step, self._attempt.steps_done, next_step if kept == float("inf") else int(kept))
        pace_s = self._seconds / self._steps if self._steps else end_s - begin_s
        until_s = min(end_s, begin_s + (done - next_step) * pace_s)
        yield from self._valued(begin_s, until_s, next_step, done, {})
        rest = Category.CHECKPOINT if self._attempt.ends_between_steps else Category.LOST
        yield from cut(until_s, end_s, self._attempt.number, {}, rest)

    def _valued(
        self, begin_s: float, end_s: float, first: int, done: int, parts: Mapping[Category, float]
    ) -> Iterator[Span]:
        """The time of the steps from ``first`` until ``done`` were done: those before the cut count."""
        if done <= first:
            return
        share = min(1.0, max(0.0, (self._attempt.kept_until - first) / (done - first)))
        kept_until_s = begin_s + share * (end_s - begin_s) if share < 1 else end_s
        number = self._attempt.number
        kept_parts = {category: share * seconds for category, seconds in parts.items()}
        yield from cut(begin_s, kept_until_s, number, kept_parts, Category.PRODUCTIVE)
        yield from cut(kept_until_s, end_s, number, {}, Category.LOST)
