"""Where the rows break things: a real S3 server behind the fault proxy, a stored dataset, and runs that read it.

A run is the real ``heliostat run`` in a session of its own, of a tiny model. It reaches the server through the proxy;
the rig itself looks at what the run writes past the proxy. An undisturbed run of the same recipe is the truth: the
digest of all sample ids that the loss saw, and every bit of the last checkpoint.
"""

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from faults.frame import Outcome, seconds_to_recover
from support.fault_proxy import FaultProxy
from support.processes import end_session, session_of
from support.projects import command, write_recipe
from support.seaweedfs import BUCKET, s3_environment, s3_server
from support.small_datasets import store_dataset
from support.worlds import tiny_recipe

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, EndEntry, LeaseEntry, live_checkpoints
from heliostat.data.manifest import DatasetManifest
from heliostat.data.order import SampleOrder
from heliostat.observe.events import Event, EventType, read_events
from heliostat.observe.metrics import METRICS_PREFIX, StepMetrics, merged_curve, read_metrics
from heliostat.observe.segments import SegmentTail
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store
from heliostat.training.ledger import EMPTY, next_digest, slot_digest

IMAGES, GROUP_ROWS = 2048, 32
GLOBAL_BATCH = 16
COMMIT_STEPS = 48
DATASET = "tiny"
_PATIENCE_S = 240.0
_DEADLINE_S = 400.0
"""For anything that a run is waited for."""


@dataclass(frozen=True)
class Finished:
    """What a run that ended well has left behind."""

    wall_s: float
    digest_of_ids: str
    state: tuple[tuple[str, ...], ...]
    """Hashes of all bytes of the last checkpoint: parameters, optimizer, teacher."""
    lines: list[StepMetrics]
    events: list[Event]
    attempts: int

    @cached_property
    def step_ends(self) -> list[float]:
        """Unix time at the end of each step."""
        return [unix(line.time_utc) for line in merged_curve(self.lines)]

    @property
    def steps(self) -> list[int]:
        """Whose metrics there are."""
        return [line.step for line in merged_curve(self.lines)]

    @property
    def training_s(self) -> float:
        """From the first step to the last one."""
        return self.step_ends[-1] - self.step_ends[0]

    def equals(self, other: "Finished") -> bool:
        """Whether the same images in the same steps gave the same bits."""
        return (self.digest_of_ids, self.state, self.steps) == (other.digest_of_ids, other.state, other.steps)


@dataclass(frozen=True)
class Harm:
    """When something was done to a run, in Unix time, and which events may tell of it."""

    name: str
    began: float
    ended: float
    told_by: Sequence[EventType] = ()


class LiveRun:
    """A run that is going on."""

    def __init__(self, store: Store, process: subprocess.Popen[str], steps: int) -> None:
        self.store = store
        self.process = process
        self._steps = steps
        self._started = time.monotonic()
        self._metrics = SegmentTail(store, METRICS_PREFIX)
        self._log = CommitLog(store)
        self._step = -1

    def wait_for_step(self, step: int) -> None:
        """Until the run has told of a step."""

        def told() -> bool:
            self._step = max([self._step, *(int(line["step"]) for line in self._metrics.poll() if "step" in line)])
            return self._step >= step

        self.wait_until(told, f"step {step}")

    def wait_for_commit(self, step: int) -> None:
        """Until the checkpoint of a step is in the log."""

        def committed() -> bool:
            return any(isinstance(entry, CheckpointEntry) and entry.step >= step for entry in self._log.read())

        self.wait_until(committed, f"the checkpoint of step {step}")

    def feeders(self) -> list[int]:
        """Processes that read and decode."""
        return [pid for pid, title in session_of(self.process.pid) if title.startswith("ray::Feeder")]

    def finish(self) -> Finished:
        """Wait for the end, which has to be a good one."""
        output, _ = self.process.communicate(timeout=_DEADLINE_S)
        wall_s = time.monotonic() - self._started
        if self.process.returncode:
            raise AssertionError(f"the run ended with {self.process.returncode}: {output.strip()[-600:]}")
        entries = self._log.read()
        last = live_checkpoints(entries)[-1]
        manifest = CheckpointManifest.model_validate_json(self.store.get(last.manifest_key))
        if not any(isinstance(entry, EndEntry) for entry in entries) or manifest.step != self._steps:
            raise AssertionError(f"the last checkpoint is of step {manifest.step}, and the log has no end")
        return Finished(
            wall_s,
            manifest.digest_of_ids,
            tuple(shard.chunk_sha256 for shard in manifest.shards),
            read_metrics(self.store),
            read_events(self.store),
            sum(isinstance(entry, LeaseEntry) for entry in entries),
        )

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Until something is so.

        Raises:
            AssertionError: the run ended before, or it takes too long.
        """
        deadline = time.monotonic() + _DEADLINE_S
        while not done():
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended before {what}: {self.process.communicate()[0].strip()[-600:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {_DEADLINE_S:g} s")
            time.sleep(0.1)


@dataclass
class Rig:
    """See the module. ``rng`` is seeded; ``faults`` is how many the random part has; every run is of so many steps."""

    folder: Path
    root_url: str
    proxy: FaultProxy
    rng: random.Random
    faults: int = 0
    steps: int = 192
    workers: int = 2

    @cached_property
    def dataset(self) -> DatasetManifest:
        """Stored when first asked for: one row group per shard, so that a fault can choose what it holds up."""
        return store_dataset(open_store(self.root_url), images(IMAGES), DATASET, group_rows=GROUP_ROWS, shard_groups=1)

    @cached_property
    def undisturbed(self) -> Finished:
        """The truth."""
        with self.run("undisturbed") as run:
            finished = run.finish()
        if finished.digest_of_ids != self.planned_digest():
            raise AssertionError("an undisturbed run saw other images than are planned")
        return finished

    @property
    def order(self) -> SampleOrder:
        """In which rows every run reads the dataset."""
        recipe = tiny_recipe()
        return SampleOrder(self.dataset.sha256, recipe.seed, self.dataset.group_rows, recipe.dataset.window_groups)

    def shard_of(self, position: int) -> str:
        """Key of the shard that holds the sample at a position of the run."""
        return self.dataset.shards[int(self.order.positions(position, 1)[0]) // GROUP_ROWS].key

    def planned_digest(self) -> str:
        """Digest of the ids that every run has to see, by arithmetic alone."""
        ids = sorted(hashlib.sha256(data).hexdigest() for data in images(IMAGES))
        slot_batch = tiny_recipe().training.slot_batch
        digest = EMPTY
        for step in range(self.steps):
            step_ids = [ids[row] for row in self.order.step(step, GLOBAL_BATCH)]
            slots = [step_ids[start : start + slot_batch] for start in range(0, GLOBAL_BATCH, slot_batch)]
            digest = next_digest(digest, map(slot_digest, slots))
        return digest.hex()

    @contextmanager
    def run(self, name: str, environment: Mapping[str, str | None] | None = None) -> Iterator[LiveRun]:
        """A run of its own name through the proxy; nothing of it is left afterwards, whatever happens.

        Args:
            name: Of the run.
            environment: Changes to the environment; None takes a variable away.
        """
        assert self.dataset.rows == IMAGES
        recipe = write_recipe(self.folder / f"{name}.yaml", self.root_url, steps=self.steps, global_batch=GLOBAL_BATCH)
        settings = {
            "name": name,
            "scaling.workers": self.workers,
            "checkpoint.every_steps": COMMIT_STEPS,
            "streaming.patience_s": _PATIENCE_S,
        }
        flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
        wanted = {**os.environ, **s3_environment(self.proxy.endpoint), **(environment or {})}
        with (
            (self.folder / f"{name}.log").open("w") as log,
            subprocess.Popen(
                command("run", str(recipe), *flags, "--json"),
                env={key: value for key, value in wanted.items() if value is not None},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield LiveRun(run_store(open_store(self.root_url), name), process, self.steps)
            finally:
                self.proxy.plan()
                self.proxy.accept()
                end_session(process.pid)

    def judge(self, finished: Finished, harms: Sequence[Harm], *, note: str = "") -> list[Outcome]:
        """What became of each harm that was done to one run."""
        exact = finished.equals(self.undisturbed)
        recomputed = len(finished.lines) - len(finished.step_ends)
        ends = [harm.began for harm in harms[1:]] + [float("inf")]
        return [
            Outcome(
                fault=harm.name,
                survived=exact,
                is_exact=exact,
                steps_lost=recomputed if number == 0 else 0,
                detect_s=_first_word(finished.events, harm),
                recover_s=seconds_to_recover(finished.step_ends, harm.ended, until),
                false_restarts=finished.attempts - 1 if number == 0 else 0,
                note=note if exact else "another result than the undisturbed run",
            )
            for number, (harm, until) in enumerate(zip(harms, ends, strict=True))
        ]


@contextmanager
def rig(folder: Path, seed: int, faults: int) -> Iterator[Rig]:
    """A rig in a folder, and the environment of this process led past the proxy."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(s3_server(folder / "s3"))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(s3_environment(endpoint))
        proxy = stack.enter_context(FaultProxy(endpoint).running())
        yield Rig(folder, f"s3://{BUCKET}/chaos", proxy, random.Random(seed), faults)


def images(count: int) -> list[bytes]:
    """Small PNG files of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    large = (cv2.resize(image, (30, 24), interpolation=cv2.INTER_CUBIC) for image in coarse)
    return [cv2.imencode(".png", image)[1].tobytes() for image in large]


def unix(time_utc: str) -> float:
    """Unix time of an ISO 8601 one."""
    return datetime.fromisoformat(time_utc).timestamp()


def _first_word(events: Sequence[Event], harm: Harm) -> float | None:
    times = [unix(event.time_utc) for event in events if event.type in harm.told_by]
    return min((time - harm.began for time in times if time >= harm.began), default=None)
