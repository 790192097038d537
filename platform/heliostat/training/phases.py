"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class PhaseClock:
    """Adds up seconds by phase until it is read.

    On a CPU it is the wall clock. On a GPU the host only queues work, so its clock would charge a phase for the work
    of another; there a pair of CUDA events encloses each phase, on the current stream. Recording one costs
    microseconds and no synchronisation; ``read``, at the steps that are reported, waits for the newest of them.

    Args:
        device: That computes the phases.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._seconds: dict[str, float] = {}
        self._is_cuda = device is not None and device.type == "cuda"
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to ``name``."""
        start: Any = self._now()
        try:
            yield
        finally:
            if self._is_cuda:
                self._events.append((name, start, self._now()))
            else:
                self._add(name, self._now() - start)

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, start, end in self._events:
            self._add(name, start.elapsed_time(end) / 1000)
        self._events.clear()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
