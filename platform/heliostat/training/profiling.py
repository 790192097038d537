"""A torch profile of a few steps, on request: ``observe.profile_steps``."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from heliostat.elastic.signals import MAILBOX
from heliostat.storage import Store

_log = logging.getLogger(__name__)
_ROWS = 40
_PATIENCE_S = 15.0


class StepProfiler:
    """Profiles the steps [from, to) of one worker; outside of them a step costs two comparisons.

    Files below the run's ``logs/``: ``profile-<attempt>-<from>-<to>.json``, a Chrome trace (chrome://tracing,
    Perfetto), and ``….txt``, a table by operator. An attempt that begins between the two profiles what is left.

    Args:
        steps: From, to; None profiles nothing.
        store: Of the run.
        attempt: Its number.
    """

    def __init__(self, steps: tuple[int, int] | None, store: Store, attempt: int) -> None:
        self._steps = steps
        self._store = store
        self._attempt = attempt
        self._first = 0
        self._profile: Any = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around each step of the run."""
        if self._steps is not None and self._profile is None and self._steps[0] <= step < self._steps[1]:
            self._start(step)
        yield
        if self._steps is not None and self._profile is not None and step + 1 >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write what was profiled, if anything was; a store that fails costs the profile only."""
        if self._profile is None:
            return
        running, self._profile, steps, self._steps = self._profile, None, self._steps, None
        assert steps is not None  # noqa: S101 -- it was started
        name = f"logs/profile-{self._attempt:04d}-{self._first}-{steps[1]}"
        MAILBOX.steps_pause()  # of a large network a profile takes minutes to be put together
        try:
            running.stop()
            self._write(name, running)
        except Exception as error:  # observation never stops a run
            _log.warning("the profile of steps %d to %d is lost: %s", self._first, steps[1], error)

    def _start(self, step: int) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._first = step
        # One start and stop: without accumulation torch keeps no events of earlier cycles.
        started = profile(activities=activities, acc_events=True)
        try:
            started.start()
        except Exception as error:  # another profiler is at work, say
            _log.warning("steps from %d on cannot be profiled: %s", step, error)
            self._steps = None
            return
        self._profile = started

    def _write(self, name: str, done: Any) -> None:
        store = self._store.patient(_PATIENCE_S)  # other workers wait meanwhile
        with tempfile.TemporaryDirectory(prefix="heliostat-profile-") as folder:
            trace = Path(folder) / "trace.json"
            done.export_chrome_trace(str(trace))
            store.upload(f"{name}.json", trace)
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table: Callable[..., str] = done.key_averages().table
        store.put(f"{name}.txt", table(sort_by=by, row_limit=_ROWS).encode())
