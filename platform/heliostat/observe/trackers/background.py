"""Keeps a tracker from stopping or slowing a run: a thread, a bounded queue, and a limit on waiting at the end."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from heliostat.observe.redaction import redact
from heliostat.observe.trackers.tracker import TrackedRun, Tracker

_log = logging.getLogger(__name__)

_Line = tuple[int, dict[str, float]]


class BackgroundTracker:
    """Hands metrics to a tracker in the background; never raises, never waits but at the end.

    The first thing that goes wrong is told once, by ``on_failure`` and a line of the log. What a tracker cannot take is
    dropped and counted; one that failed at a step is tried again at the next, one that did not start is given up.

    Args:
        name: Of the tracker.
        tracker: Used by one thread only.
        run: What it tracks.
        on_failure: Called at most once, with the tracker's name and the reason.
        queued_lines: Lines that wait for a slow tracker; beyond it new ones are dropped.
        patience_s: How long ``close`` waits.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: TrackedRun,
        on_failure: Callable[[str, str], None],
        *,
        queued_lines: int = 1000,
        patience_s: float = 10.0,
    ) -> None:
        self.dropped = 0
        self._name = name
        self._tracker = tracker
        self._run = run
        self._on_failure = on_failure
        self._patience_s = patience_s
        self._lines: queue.Queue[_Line] = queue.Queue(queued_lines)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._has_failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the finite numbers of one step."""
        finite = {key: float(value) for key, value in values.items() if _is_finite(value)}
        try:
            self._lines.put_nowait((step, finite))
        except queue.Full:
            self._drop(f"it is slower than the run: {self._lines.maxsize} lines wait for it")

    def close(self) -> None:
        """Let the tracker finish; one that does not within ``patience_s`` is left behind."""
        self._closing.set()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self.dropped += self._lines.qsize()
            self._fail(f"it did not finish within {self._patience_s:g} s")
        if self.dropped:
            _log.warning("%s did not get %d lines of metrics; the run's own files have them", self._name, self.dropped)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            self._tracker.start(self._run)
        except Exception as error:  # whatever a library does, the run goes on
            self._drop_all(_reason(error))
            return
        while (line := self._next()) is not None:
            try:
                self._tracker.log(*line)
            except Exception as error:
                self._drop(_reason(error))
        try:
            self._tracker.close()
        except Exception as error:
            self._fail(_reason(error))

    def _next(self) -> _Line | None:
        """The next line; None after the last one."""
        while True:
            try:
                return self._lines.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    return None

    def _drop_all(self, reason: str) -> None:
        self._fail(reason)
        while self._next() is not None:
            self._drop(reason)

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.dropped += 1
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self._has_failed:
                return
            self._has_failed = True
        _log.warning("%s does not take metrics, the run goes on without it: %s", self._name, reason)
        self._on_failure(self._name, reason)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reason(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return redact(f"{type(error).__name__}: {first_line}")
