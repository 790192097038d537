"""What the page remembers between looks, so that a look reads only what is new."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from heliostat.checkpoint.log import CommitLog, has_ended
from heliostat.observe.following import RunFollower
from heliostat.observe.segments import Line
from heliostat.storage.layout import RUNS
from heliostat_jobs.kinds import JOB_KINDS, Job

_POINTS = 400
"""Of a curve: more are halved."""
_RUNS = 4
"""That are followed at a time; the one that nobody looked at for longest is forgotten."""
_SHOWN = ("loss", "images_per_s", "knn_top1")


@dataclass
class Curve:
    """Some steps of a run, as of the newest attempt that computed them, evenly spread over all."""

    every: int = 1
    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    judged: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Steps after which the teacher was judged; all are kept, as they are rare."""
    _last: int = -1

    def add(self, lines: list[Line]) -> None:
        """More lines, in order."""
        for line in lines:
            step = int(line["step"])
            if step <= self._last:  # computed again: what an older attempt told from here on does not count
                self.points = {known: point for known, point in self.points.items() if known < step}
                self.judged = {known: point for known, point in self.judged.items() if known < step}
            self._last = step
            point = {"step": step + 1, **{name: line.get(name) for name in _SHOWN}}
            if step % self.every == 0:
                self.points[step] = point
            if line.get("knn_top1") is not None:
                self.judged[step] = point
        while len(self.points) > 2 * _POINTS:
            self.every *= 2
            self.points = {step: point for step, point in self.points.items() if step % self.every == 0}

    def to_json(self) -> list[dict[str, Any]]:
        """The points, in order."""
        return [point for _, point in sorted({**self.points, **self.judged}.items())]


@dataclass
class FollowedRun:
    """A run with its curve, for one look at a time."""

    run: RunFollower
    curve: Curve = field(default_factory=Curve)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        """Read what is new."""
        self.curve.add(self.run.look())
        self.run.account()


@dataclass
class Memory:
    """What is known of a root's jobs."""

    _runs: OrderedDict[str, FollowedRun] = field(default_factory=OrderedDict)
    _logs: dict[str, CommitLog] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, job: Job, make: Callable[[], RunFollower]) -> FollowedRun:
        """A run as it was followed so far."""
        with self._lock:
            found = self._runs.pop(job.name, None) or FollowedRun(make())
            self._runs[job.name] = found
            while len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
            return found

    def is_finished(self, job: Job) -> bool:
        """Whether what a job is to make is there; a run that has ended is not asked again."""
        if JOB_KINDS[job.kind].folder != RUNS:
            return job.is_finished
        with self._lock:
            if job.name in self._ended:
                return True
            log = self._logs.setdefault(job.name, CommitLog(job.store))
        if has_ended(log.read()):
            with self._lock:
                self._ended.add(job.name)
                self._logs.pop(job.name, None)
            return True
        return False
