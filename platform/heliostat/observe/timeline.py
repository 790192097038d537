"""What a run did at every time of its wall clock: spans without gaps and overlaps, swept from its events and metrics.

Lines of steps come from workers, other events from the driver, and their clocks differ a little; lines may be missing.
So the sweep believes the order of times, cuts at every sign of life, and gives each piece to one category. The newest
attempt wins: what an older one still writes is ignored.

A run without a driver (one process, older versions) is looked after by the attempt itself: from its start to its end.
"""

from collections.abc import Iterable

from heliostat.observe.attempt_work import AttemptWork
from heliostat.observe.attempts import Attempt, attempts_of, measured_s, seconds_of
from heliostat.observe.events import Event, EventType
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.spans import Category, Span

_ENDS = (EventType.RUN_FINISHED, EventType.ATTEMPT_ENDED, EventType.INTERRUPTED)
_IDLE_AFTER = {str(EventType.CAPACITY_AWAITED): Category.CAPACITY, str(EventType.GAVE_UP): Category.OTHER}
_ORDER = {
    kind: place
    for place, kind in enumerate(
        [
            EventType.SUPERVISION_STARTED,
            EventType.ATTEMPT_STARTED,
            EventType.RESUMED,
            EventType.DATA_READY,
            "line",
            *_ENDS,
            EventType.CAPACITY_AWAITED,
            EventType.WORKERS_STARTING,
            EventType.GAVE_UP,
            EventType.SUPERVISION_ENDED,
        ]
    )
}
"""The order of signs of the same time and attempt."""


def timeline(metrics: Iterable[StepMetrics], events: Iterable[Event], now_s: float | None = None) -> list[Span]:
    """The run from its first sign of life to its last, as spans that follow one another without gaps.

    Args:
        metrics: All lines of all attempts, in any order.
        events: All events of the run, in any order.
        now_s: Seconds since 1970 up to which a run that is still looked after is to be followed. None for a run of
            which no more will come.
    """
    metrics, events = list(metrics), list(events)
    attempts = attempts_of(metrics, events)
    found = [*(_Sign.of_line(line) for line in metrics), *(_Sign.of_event(event, attempts) for event in events)]
    signs = sorted({sign.order: sign for sign in found}.values(), key=lambda sign: sign.order)
    if not signs:
        return []
    first = signs[0]
    sweep = _Sweep(attempts, first.at_s - (measured_s(first.line) if first.line else 0.0))
    for sign in signs:
        sweep.take(sign)
    return sweep.finish(now_s)


class _Sign:
    """A line or an event, at its time."""

    __slots__ = ("at_s", "attempt", "kind", "line", "order")

    def __init__(
        self, at_s: float, attempt: int, kind: str, line: StepMetrics | None, detail: tuple[tuple[str, float], ...]
    ) -> None:
        self.at_s, self.attempt, self.kind, self.line = at_s, attempt, kind, line
        self.order = (at_s, attempt, _ORDER.get(kind, len(_ORDER)), kind, line.step if line else 0, detail)

    @classmethod
    def of_line(cls, line: StepMetrics) -> "_Sign":
        return cls(seconds_of(line.time_utc), line.attempt, "line", line, tuple(sorted(line.seconds.items())))

    @classmethod
    def of_event(cls, event: Event, attempts: dict[int, Attempt]) -> "_Sign":
        at_s = seconds_of(event.time_utc)
        if event.type in _ENDS:  # by whichever clock: no attempt ended before its last step
            at_s = max(at_s, attempts[event.attempt].last_line_at_s)
        return cls(at_s, event.attempt, event.type, None, ())


class _Sweep:
    """State of the sweep: who looks after the run, which attempt works, and up to when it is told."""

    def __init__(self, attempts: dict[int, Attempt], begin_s: float) -> None:
        self._attempts = attempts
        self._spans: list[Span] = []
        self._told_s = self._last_sign_s = begin_s
        self._idle = Category.OTHER  # what passes while no attempt works
        self._is_alive = self._has_driver = self._has_failed = False
        self._attempt = 0
        self._attempt_is_over = True
        self._work: AttemptWork | None = None

    def take(self, sign: _Sign) -> None:
        """Go on to the next sign."""
        if sign.line is not None:
            self._step(sign.at_s, sign.line)
        elif sign.kind in _ENDS:
            self._end(sign)
        elif sign.kind in (EventType.ATTEMPT_STARTED, EventType.DATA_READY):
            self._begin(sign)
        else:
            self._driver_said(sign)
        self._last_sign_s = sign.at_s

    def finish(self, now_s: float | None) -> list[Span]:
        """All spans. What passes after the end of a run is none of its time."""
        end_s = max(self._last_sign_s, now_s or 0.0)
        if self._work is not None:  # a step in the making is believed to count
            self._tell(end_s, Category.PRODUCTIVE)
        elif self._is_alive:
            self._tell(end_s, self._idle)
        while not self._is_alive and self._spans and self._spans[-1].category == Category.DOWN:
            self._spans.pop()
        return self._spans

    def _step(self, at_s: float, line: StepMetrics) -> None:
        if self._is_old(line.attempt):
            return self._pass(at_s)
        begin_s = max(self._last_sign_s, at_s - measured_s(line))
        self._start(begin_s, line.attempt)
        if self._work is None:
            self._pass(begin_s)
            self._work = AttemptWork(self._attempts[line.attempt])
        self._spans.extend(self._work.line(self._told_s, at_s, line))
        self._told_s = at_s

    def _begin(self, sign: _Sign) -> None:
        if self._is_old(sign.attempt):
            return self._pass(sign.at_s)
        self._start(sign.at_s, sign.attempt)
        if sign.kind == EventType.DATA_READY and self._work is None:
            self._pass(sign.at_s)
            self._work = AttemptWork(self._attempts[sign.attempt])

    def _end(self, sign: _Sign) -> None:
        if sign.attempt > self._attempt:  # it failed before it said that it had begun
            self._start(sign.at_s, sign.attempt)
        if sign.attempt == self._attempt and not self._attempt_is_over:
            self._stop_working(sign.at_s)
            self._attempt_is_over = True
            self._has_failed = True
            if self._idle != Category.CAPACITY:  # which the driver may have said by a clock that is behind
                self._idle = Category.OTHER if sign.kind == EventType.RUN_FINISHED else Category.RECOVERY
        self._pass(sign.at_s)
        if sign.kind == EventType.INTERRUPTED and self._idle == Category.START:  # not even an attempt came of it
            self._has_failed, self._idle = True, Category.RECOVERY
        if sign.kind == EventType.ATTEMPT_ENDED and sign.attempt == self._attempt and not self._has_driver:
            self._is_alive, self._idle = False, Category.DOWN

    def _driver_said(self, sign: _Sign) -> None:
        if sign.kind == EventType.SUPERVISION_STARTED:
            self._wake(sign.at_s)
            self._has_driver = True
        elif sign.kind in (EventType.CAPACITY_AWAITED, EventType.WORKERS_STARTING, EventType.GAVE_UP):
            if not self._is_alive:
                self._wake(sign.at_s)
            self._has_driver = True
            self._stop_working(sign.at_s)
            self._idle = _IDLE_AFTER.get(sign.kind, self._preparing)
        elif sign.kind == EventType.SUPERVISION_ENDED:
            self._stop_working(sign.at_s)
            self._is_alive = self._has_driver = False
            self._attempt_is_over, self._idle = True, Category.DOWN
        elif self._work is None:
            self._pass(sign.at_s)

    def _start(self, at_s: float, attempt: int) -> None:
        """A newer attempt begins, unless it is the one that is known."""
        if attempt <= self._attempt:
            return
        if self._has_driver:
            self._has_failed |= not self._attempt_is_over
            self._stop_working(at_s)
            self._idle = self._preparing
        else:
            self._wake(at_s)
        self._attempt, self._attempt_is_over = attempt, False

    def _wake(self, at_s: float) -> None:
        """Somebody looks after the run from now on; who did so before went after the last sign of life."""
        if self._is_alive:
            self._stop_working(self._last_sign_s)
            self._idle = Category.DOWN
        self._has_failed |= self._attempt > 0 or self._is_alive
        self._pass(at_s)
        self._is_alive, self._attempt_is_over = True, True
        self._idle = self._preparing

    def _stop_working(self, at_s: float) -> None:
        if self._work is not None:
            self._spans.extend(self._work.broken_off(self._told_s, at_s))
            self._told_s = at_s
            self._work, self._has_failed = None, True
        self._pass(at_s)

    @property
    def _preparing(self) -> Category:
        return Category.RECOVERY if self._has_failed else Category.START

    def _is_old(self, attempt: int) -> bool:
        return attempt < self._attempt or (attempt == self._attempt and self._attempt_is_over)

    def _pass(self, at_s: float) -> None:
        """Up to now the run was idle, unless its time is told at the next step."""
        if self._work is None:
            self._tell(at_s, self._idle)

    def _tell(self, at_s: float, category: Category) -> None:
        if at_s > self._told_s:
            self._spans.append(Span(self._told_s, at_s, category, self._attempt))
            self._told_s = at_s
