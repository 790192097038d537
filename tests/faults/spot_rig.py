"""Where plans are carried out: a simulated cluster, a stored dataset, and runs on it in processes of their own.

The truth is a run of the same recipe that nothing is done to.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from faults.plan import Fault, Kind
from faults.rig import images
from faults.spot_run import SpotRun
from support.processes import end_session, is_running, segments, segments_used, titled
from support.projects import write_recipe
from support.small_datasets import store_dataset
from support.whole_runs import assert_run_equals_plain_training

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CommitLog, live_checkpoints
from heliostat.observe.events import read_events
from heliostat.observe.metrics import METRICS_PREFIX, read_metrics
from heliostat.observe.segments import SegmentTail
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store
from heliostat_cluster.simulated import WORKER_RESOURCE, SimulatedCluster, simulated_cluster

IMAGES, GROUP_ROWS = 1024, 32
GLOBAL_BATCH, SLOT_BATCH = 12, 2
"""Six slots: 1, 2 and 3 workers take 6, 3 and 2 rounds."""
DATASET = "tiny"
TOLERANCE = 1e-5
_DEADLINE_S = 300.0
_LEFT_S = 20.0
_OF_RAY = frozenset({"_AutoscalingCoordinatorActor", "_UsageCollectionActor", "_StatsActor"})
"""One per cluster, whoever uses Ray Data or Ray Train there."""


@dataclass
class LiveSpotRun:
    """A run that goes on."""

    cluster: SimulatedCluster
    store: Store
    process: "subprocess.Popen[bytes]"
    notes: Path
    log: Path
    pace_s: float
    limit_s: float = _DEADLINE_S
    """For the whole run."""
    done_at: list[tuple[Fault, float]] = field(default_factory=list)
    """What was done, and in Unix time when it began to harm."""
    came_at: list[float] = field(default_factory=list)
    """Unix times at which nodes were there that were added."""
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _step: int = -1

    def __post_init__(self) -> None:
        self._tail = SegmentTail(self.store, METRICS_PREFIX)

    def pid_of(self, rank: int) -> int:
        """Of a worker's process."""
        return self._ranks()[rank][0]

    def node_of(self, rank: int) -> str:
        """Id of a worker's node."""
        return self._ranks()[rank][1]

    def wait_s(self, seconds: float) -> None:
        """Let time pass; what was put off is done meanwhile."""
        deadline = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() >= deadline, f"{seconds:g} s")

    def carry_out(self, plan: Sequence[Fault]) -> None:
        """Do what is planned, each when its step has been told of."""
        for fault in plan:
            self.wait_for_step(fault.step)
            self.do(fault)

    def do(self, fault: Fault) -> None:
        """Do one thing now."""
        if fault.kind is Kind.ADD_NODE:
            self.done_at.append((fault, time.time()))
            self.cluster.add_node()
            self.came_at.append(time.time())
            return
        ranks = self._ranks()
        pid, node_id = ranks[fault.rank % len(ranks)]
        self.done_at.append((fault, time.time()))
        if fault.kind in (Kind.KILL_RANK, Kind.STOP_RANK):
            os.kill(pid, signal.SIGKILL if fault.kind is Kind.KILL_RANK else signal.SIGSTOP)
        elif fault.kind is Kind.KILL_NODE:
            self.cluster.kill_node(node_id)
        else:
            notice_s = 120.0 if fault.kind is Kind.TAKE_EARLY else fault.seconds
            self.cluster.drain_node(node_id, notice_s)
            # A false alarm ends too, long after: what Ray drains is never given work again.
            after_s = fault.seconds + (15.0 if fault.kind is Kind.FALSE_ALARM else 0.0)
            self._later.append((time.time() + after_s, lambda: self.cluster.kill_node(node_id)))

    def _ranks(self) -> list[tuple[int, str]]:
        """Process and node of each worker of the attempt that runs, by rank."""
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            notes = [json.loads(path.read_text()) for path in sorted(self.notes.glob("*.json")) if path.stat().st_size]
            newest = {note["rank"]: note for note in notes if is_running(note["pid"])}
            if newest and sorted(newest) == list(range(len(newest))):
                return [(newest[rank]["pid"], newest[rank]["node"]) for rank in sorted(newest)]
            self.tick()
        raise AssertionError("no attempt has begun")

    def wait_for_step(self, step: int) -> None:
        """Until the run has told of a step."""

        def told() -> bool:
            self._step = max([self._step, *(int(line["step"]) for line in self._tail.poll() if "step" in line)])
            return self._step >= step

        self.wait_until(told, f"step {step}", self.limit_s)

    def wait_until(self, done: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
        """Until something is so; what was put off is done meanwhile."""
        deadline = time.monotonic() + deadline_s
        while not done():
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended before {what}: {self.tail_of_log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {deadline_s:g} s: {self.tail_of_log()}")
            self.tick()

    def tick(self) -> None:
        """A moment passes."""
        for entry in list(self._later):
            if time.time() >= entry[0]:
                self._later.remove(entry)
                with suppress(StopIteration):  # it went before its time
                    entry[1]()
        time.sleep(0.1)

    def tail_of_log(self) -> str:
        """What the driver said last."""
        return self.log.read_text()[-800:]

    def finish(self) -> SpotRun:
        """Wait for the end, which has to be a good one."""
        status = self.end()
        if status:
            raise AssertionError(f"the run ended with {status}: {self.tail_of_log()}")
        manifest = live_checkpoints(CommitLog(self.store).read())[-1].manifest_key
        return SpotRun(
            self.store,
            CheckpointManifest.model_validate_json(self.store.get(manifest)),
            read_metrics(self.store),
            read_events(self.store),
        )

    def end(self) -> int:
        """Wait for the end, whatever it is like; the exit status."""
        deadline = time.monotonic() + self.limit_s
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the run did not end within {self.limit_s:g} s: {self.tail_of_log()}")
            self.tick()
        return int(self.process.returncode)


@dataclass
class SpotRig:
    """See the module."""

    folder: Path
    cluster: SimulatedCluster
    workers: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    faults: int = 0
    """How many the random part has."""
    steps: int = 160
    """Of every run but random ones."""

    def __post_init__(self) -> None:
        self.root = open_store(str(self.folder / "root"))
        store_dataset(self.root, images(IMAGES), DATASET, group_rows=GROUP_ROWS, shard_groups=1)
        self._segments_before = segments()

    @contextmanager
    def run(
        self,
        name: str,
        steps: int,
        *settings: str,
        pace_s: float = 0.4,
        poison: int | None = None,
        hold_commit: int | None = None,
        recipe: Path | None = None,
    ) -> Iterator[LiveSpotRun]:
        """A run of its own name; nothing of it is left afterwards, whatever happens.

        Args:
            name: Of the run.
            steps: That it has.
            settings: Of its recipe, besides those of every run here.
            pace_s: A step takes no less.
            poison: A step whose images are not finite.
            hold_commit: From the checkpoint of this step on the first attempt is held up when it is about to commit.
            recipe: Another one than the usual, of as many steps.
        """
        notes, log = self.folder / f"{name}-notes", self.folder / f"{name}.log"
        notes.mkdir()
        written = recipe or write_recipe(
            self.folder / f"{name}.yaml",
            self.root.url,
            steps=steps,
            global_batch=GLOBAL_BATCH,
            slot_batch=SLOT_BATCH,
        )
        wanted = [
            f"name={name}",
            f"scaling.workers={self.workers}",
            f"scaling.worker_resource={WORKER_RESOURCE}",
            "scaling.grow_patience_s=2",
            "scaling.standby_after_s=1",
            "checkpoint.every_steps=1000",
            *settings,
        ]
        chosen = [flag for setting in wanted for flag in ("--set", setting)]
        harm = {"--poison": poison, "--hold-commit": hold_commit}
        harmed = [word for flag, step in harm.items() if step is not None for word in (flag, str(step))]
        arguments = [self.cluster.address, str(written), str(notes), "--pace", str(pace_s), *harmed, *chosen]
        tests = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "faults.paced", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            yield LiveSpotRun(self.cluster, run_store(self.root, name), process, notes, log, pace_s)
        finally:
            end_session(process.pid)
            process.wait()

    @cached_property
    def undisturbed(self) -> SpotRun:
        """The truth."""
        self.renew()
        with self.run("undisturbed", self.steps) as live:
            run = live.finish()
        if run.causes():
            raise AssertionError(f"an undisturbed run was interrupted: {run.causes()}")
        return run

    def is_exact(self, run: SpotRun, steps: int | None = None) -> bool:
        """Whether a run saw the planned images, told of each step once, and ended with the parameters of the truth.

        Of a run of other length than the truth, a plain process that trains the same is the truth.
        """
        if run.steps != list(range(steps or self.steps)):
            return False
        if steps is not None:
            return self._equals_plain(run)
        same_ids = run.manifest.digest_of_ids == self.undisturbed.manifest.digest_of_ids
        return same_ids and self.distance(run) <= TOLERANCE

    def distance(self, run: SpotRun) -> float:
        """Of a run's parameters from the truth, relative."""
        return run.distance(self.undisturbed)

    def _equals_plain(self, run: SpotRun) -> bool:
        try:
            assert_run_equals_plain_training(self.root, run.store.url.rsplit("/", 1)[-1])
        except AssertionError:
            return False
        return True

    def renew(self) -> None:
        """As many nodes as there were at first, none of which was ever announced to go."""
        for node in [node for node in self.cluster.nodes if node.node_id in self.cluster.drained]:
            self.cluster.kill_node(node.node_id)
        self.whole()

    def whole(self) -> None:
        """As many nodes as there were at first."""
        while len(self.cluster.nodes) < self.workers:
            self.cluster.add_node()

    def left_behind(self) -> list[str]:
        """Actors, placement groups, worker processes and shared memory that runs have left on the cluster."""
        import ray
        from ray._private.state import state

        deadline = time.monotonic() + _LEFT_S
        with _joined(self.cluster.address):
            while True:
                actors = [
                    f"actor {actor['ActorClassName']}" for actor in state.actor_table(None).values() if _lives(actor)
                ]
                groups = [
                    f"placement group {group['placement_group_id'][:8]}"
                    for group in ray.util.placement_group_table().values()
                    if group["state"] != "REMOVED"
                ]
                below = self.cluster.all_processes()
                ours = ("ray::RayTrainWorker", "ray::Feeder", "ray::Holder", "ray::ElasticController")
                processes = [f"process {title}" for pid, title in titled(ours) if pid in below]
                found = [*actors, *groups, *processes, *self._segments_left(below)]
                if not found or time.monotonic() > deadline:
                    return found
                time.sleep(0.5)

    def _segments_left(self, of_cluster: set[int]) -> list[str]:
        """Shared memory that was not there at first, without what processes beside the cluster use."""
        if not (new := segments() - self._segments_before):
            return []
        return [f"shared memory {name}" for name in sorted(new - segments_used(lambda pid: pid not in of_cluster))]


def _lives(actor: dict[str, str]) -> bool:
    return actor["State"] != "DEAD" and actor["ActorClassName"] not in _OF_RAY


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def spot_rig(folder: Path, workers: int, seed: int = 0, faults: int = 0) -> Iterator[SpotRig]:
    """A cluster with a node per worker, and a dataset."""
    with simulated_cluster(workers) as cluster:
        yield SpotRig(folder, cluster, workers, random.Random(seed), faults)
