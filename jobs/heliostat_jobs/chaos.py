"""``heliostat demo --chaos``: a run on a simulated cluster of spot nodes, to which is done what happens to such nodes.

The run is a ``heliostat run --address`` in a process of its own. The main thread does the harm: it alone may start
nodes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from heliostat.errors import StorageError, TrainingFailedError
from heliostat.observe.metrics import METRICS_PREFIX
from heliostat.observe.segments import SegmentTail
from heliostat.storage import Store
from heliostat_cluster.simulated import WORKER_RESOURCE, SimulatedCluster

NODES = 2
SETTINGS = (
    f"scaling.workers={NODES}",
    "scaling.min_workers=1",
    f"scaling.worker_resource={WORKER_RESOURCE}",
    "scaling.grow_patience_s=1.0",
    "scaling.standby_after_s=1.0",
)
"""Of a run that goes on with what is left, and returns to full size soon: its cluster is seconds old, its nodes too."""
NOTICE_S = 8.0
"""Clouds give 30 seconds to two minutes; the demo is short."""
_KILL_AT, _DRAIN_AT = 0.3, 0.55
_NEW_NODE_AFTER_S = 8.0
_WORKER = "ray::RayTrainWorker"
_STOP_S = 20.0
_LOOK_S = 0.2

Tell = Callable[[str], None]


class Act(StrEnum):
    """What is done."""

    KILL_WORKER = "kill worker"
    """SIGKILL to a process that trains."""
    ANNOUNCE = "announce"
    """The node of a worker will be taken away in ``NOTICE_S``."""
    TAKE_NODE = "take node"
    """The node that was announced vanishes, and all that runs on it."""
    ADD_NODE = "add node"


@dataclass(frozen=True, slots=True)
class Deed:
    """One line of a plan: done when both have come."""

    act: Act
    step: int
    """Of the run."""
    after_s: float = 0.0
    """Since the deed before it."""

    def is_due(self, step: int, since_last_s: float) -> bool:
        """Whether its time has come.

        Args:
            step: The last one that the run has told of.
            since_last_s: Seconds since the deed before it.
        """
        return step >= self.step and since_last_s >= self.after_s


def chaos_plan(steps: int, done: int = -1) -> list[Deed]:
    """What is done to a run: a worker dies, then a node goes after a notice and another one comes.

    Args:
        steps: Of the run.
        done: The last step that it has told of already, when it is resumed: what belongs before it is left out.
    """
    kill, drain = int(_KILL_AT * steps), int(_DRAIN_AT * steps)
    plan = [
        Deed(Act.KILL_WORKER, kill),
        Deed(Act.ANNOUNCE, drain),
        Deed(Act.TAKE_NODE, drain, NOTICE_S),
        Deed(Act.ADD_NODE, drain, _NEW_NODE_AFTER_S),
    ]
    return [deed for deed in plan if deed.step > done]


def train_under_chaos(
    cluster: SimulatedCluster, recipe: Path, overrides: Sequence[str], store: Store, steps: int, tell: Tell
) -> None:
    """Train on a cluster, and do to it what is planned meanwhile; from the main thread only.

    Args:
        cluster: With a node for each worker.
        recipe: Of the run.
        overrides: ``a.b=value`` for it.
        store: The run's.
        steps: Of the run.
        tell: Is given a line for each thing that is done.

    Raises:
        TrainingFailedError: the run ended otherwise than well.
    """
    told = _Told(store)
    plan = chaos_plan(steps, told.step())
    flags = [flag for override in overrides for flag in ("--set", override)]
    arguments = ["run", str(recipe), "--address", cluster.address, *flags, "--json"]
    with subprocess.Popen(  # noqa: S603 -- ourselves
        [sys.executable, "-m", "heliostat_jobs.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Control-C is for us to pass on, once
    ) as process:
        try:
            _Director(cluster, tell).carry_out(plan, told.step, lambda: process.poll() is None)
            answer, _ = process.communicate()
        finally:
            _stop(process)
    if process.returncode:
        raise _failure(answer, process.returncode)


class _Told:
    """The last step that a run has told of."""

    def __init__(self, store: Store) -> None:
        self._tail = SegmentTail(store, METRICS_PREFIX)
        self._step = -1

    def step(self) -> int:
        """As of now; minus one before the first."""
        with suppress(StorageError):  # asked again soon
            self._step = max([self._step, *(int(line["step"]) for line in self._tail.poll() if "step" in line)])
        return self._step


class _Director:
    """Carries a plan out."""

    def __init__(self, cluster: SimulatedCluster, tell: Tell) -> None:
        self._cluster = cluster
        self._tell = tell
        self._announced: str | None = None

    def carry_out(self, plan: Sequence[Deed], step: Callable[[], int], is_running: Callable[[], bool]) -> None:
        """Until the run ends, whatever is done by then."""
        waiting, last = list(plan), time.monotonic()
        while is_running():
            now = step()
            if waiting and waiting[0].is_due(now, time.monotonic() - last) and self._do(waiting[0], now):
                waiting.pop(0)
                last = time.monotonic()
            time.sleep(_LOOK_S)

    def _do(self, deed: Deed, step: int) -> bool:
        """Do one thing now; false where there is nobody to do it to, yet."""
        if deed.act is Act.ADD_NODE:
            self._say(step, "another node comes")
            self._cluster.add_node()
            return True
        if deed.act is Act.TAKE_NODE:
            assert self._announced is not None  # noqa: S101 -- plans announce first
            self._say(step, "the node is gone")
            self._cluster.kill_node(self._announced)
            return True
        trains = {node.node_id: self._cluster.processes(node.node_id, _WORKER) for node in self._cluster.nodes}
        node_id, pids = next(((node_id, pids) for node_id, pids in trains.items() if pids), (None, []))
        if node_id is None:  # between two attempts
            return False
        if deed.act is Act.KILL_WORKER:
            self._say(step, f"a worker is killed (SIGKILL to process {pids[0]})")
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        else:
            self._say(step, f"the node of a worker will be taken away in {NOTICE_S:g} s")
            self._cluster.drain_node(node_id, NOTICE_S)
            self._announced = node_id
        return True

    def _say(self, step: int, what: str) -> None:
        self._tell(f"chaos: after step {step + 1}: {what}")


def _stop(process: "subprocess.Popen[str]") -> None:
    """As Control-C does, and if that is of no use, for good; all that Ray runs ends with the cluster."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_STOP_S)
    finally:  # whoever presses Control-C twice does not wait
        process.kill()


def _failure(answer: str, status: int) -> TrainingFailedError:
    """What the run's last line tells of its end."""
    error: dict[str, Any] = {}
    with suppress(ValueError, IndexError, KeyError, TypeError):
        error = json.loads(answer.strip().splitlines()[-1])["error"]
    return TrainingFailedError(
        str(error.get("message", f"the run ended with status {status}")),
        str(error.get("next_step", "The same command resumes it from what is committed")),
    )
