"""One worker's part in one attempt of a run: restore, train, commit. Runs inside Ray Train."""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from heliostat.checkpoint.log import CommitLog, EndEntry, Lease
from heliostat.checkpoint.retention import retire, sweep
from heliostat.checkpoint.verify import Choice, newest_good
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.cache import ShardCache
from heliostat.data.manifest import load_manifest
from heliostat.data.read_plan import read_advice
from heliostat.data.samples import PinnedDataset, Samples, SampleSource, WorkerShare
from heliostat.data.selection import predict_selection
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import stream_samples
from heliostat.errors import CorruptCheckpointError, HeliostatError, StorageError
from heliostat.models.weights.runs import LOCK_KEY
from heliostat.objectives.networks import Network
from heliostat.objectives.step import StepResult, TrainingStep
from heliostat.observe.events import EventType, EventWriter
from heliostat.observe.logs import configure_logging
from heliostat.observe.metrics import MetricsWriter
from heliostat.storage import Store
from heliostat.training.collective import Agreement, all_do, first_does
from heliostat.training.feed import Feed, StepInput, slot_batch
from heliostat.training.ledger import EMPTY, SampleLedger
from heliostat.training.phases import PhaseClock
from heliostat.training.state import load_state, save_state
from heliostat.training.zero import ZeroEngine

_log = logging.getLogger(__name__)

_POLL_S = 5.0
_STALL_S = 15.0
"""Seconds without images after which the run says so."""
_STORE_PATIENCE_S = 100.0
"""How long a commit may wait for the store: less than the collectives in which other workers wait for it."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What every worker has to know."""

    recipe: PretrainRecipe
    root: Store
    """The opened root: a relative path in the recipe means another folder in a worker, which runs elsewhere."""
    manifests: dict[str, str]
    """Hash of the manifest that the run has pinned, by name of the dataset."""


def run_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one run."""
    return root.sub(f"runs/{name}")


def sample_source(recipe: PretrainRecipe, root: Store, manifests: Mapping[str, str], workers: int = 1) -> SampleSource:
    """The datasets of a run, by the hashes of the manifests that it has pinned."""
    streaming = recipe.streaming
    cache = ShardCache(Path(streaming.cache_dir), int(streaming.cache_gib * 2**30)) if streaming.cache_dir else None
    pinned = tuple(PinnedDataset(name, manifests[name], share) for name, share in recipe.dataset.shares.items())
    patient = root.patient(streaming.patience_s)
    return SampleSource(patient, pinned, recipe.seed, recipe.dataset.window_groups, cache, workers)


def _stream_from(source: SampleSource, share: WorkerShare, steps: int, first_step: int) -> Iterator[Samples]:
    return stream_samples(source, share, first_step, steps)


def train_attempt(config: dict[str, Any]) -> None:
    """Ray Train's entry into a worker: ``config["spec"]`` is a ``RunSpec``."""
    configure_logging()
    with ExitStack() as stack:
        worker = AttemptWorker(config["spec"], stack)
        try:
            worker.train()
        except HeliostatError as error:
            worker.ended(str(error))
            raise
        worker.ended("completed")


class AttemptWorker:
    """State and loop of one worker."""

    def __init__(self, spec: RunSpec, stack: ExitStack) -> None:
        import ray.train.torch

        recipe = self._recipe = spec.recipe
        self._store = run_store(spec.root, recipe.name).patient(_STORE_PATIENCE_S)
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        self._device = ray.train.torch.get_device()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the collectives of objects choose their device by it
        self._plan = SlotPlan(recipe.training.slots, world_size)
        self._log = CommitLog(self._store)
        self._lease: Lease = first_does(lambda: self._log.acquire_lease(f"{socket.gethostname()}:{os.getpid()}"))
        flush_s = recipe.observe.flush_interval_s
        # Rank 0 writes for all: what it sees of a step is what the run did.
        self._is_first = self._rank == 0
        self._events = stack.enter_context(EventWriter(self._store, self._lease.attempt, None, flush_s))
        self._metrics = stack.enter_context(MetricsWriter(self._store, self._lease.attempt, flush_s))
        self._emit(EventType.ATTEMPT_STARTED, workers=world_size, device=self._device.type)
        self._clock = PhaseClock()
        self._steps_to_report = 0
        self._has_started = False
        self._agreement = Agreement()
        self._data_costs = Counter[str]()
        self._spec = spec
        self._stack = stack

    def train(self) -> None:
        """From the newest good checkpoint to the last step."""
        first_does(lambda: sweep(self._store, self._log, self._lease))  # what dead attempts left half-written
        source = sample_source(self._recipe, self._spec.root, self._spec.manifests, self._plan.world_size)
        all_do(lambda: source.order)  # opens the datasets: what is wrong with them is an error of all workers
        first_does(self._advise)
        self._engine, self._training = self._new_training()
        self._stack.callback(self._engine.close)
        steps = self._recipe.training.steps
        first_step, digest = self._restore()
        ledger = SampleLedger(self._plan, digest)
        share = WorkerShare(self._plan, self._rank, self._recipe.training.slot_batch)
        stream = partial(_stream_from, source, share, steps)
        on_cpu = self._device.type == "cpu"
        feed = Feed(self._recipe, self._plan, self._rank, first_step, stream, photometric=on_cpu)
        self._stack.callback(feed.close)
        for step in range(first_step, steps):
            with self._clock.phase("data_wait_s"):
                self._wait_for_images(feed, step)
                prepared = feed.take()
            for cause in prepared.deaths:  # told by the worker that it happened to
                self._events.emit(EventType.FEEDER_REPLACED, step=step, worker=self._rank, cause=cause)
            if step == first_step:
                self._emit(EventType.DATA_READY, step=step)
            result = self._training.run(step, [slot_batch(slot, self._device) for slot in prepared.slots])
            ledger.consumed(prepared)
            self._report(step, prepared, result)
            if (step + 1) % self._recipe.checkpoint.every_steps == 0 or step + 1 == steps:
                with self._clock.phase("checkpoint_s"):
                    self._checkpoint(step + 1, ledger)
        feed.close()
        first_does(self._finish)

    def ended(self, cause: str) -> None:
        """Note why the attempt stopped."""
        self._emit(EventType.ATTEMPT_ENDED, cause=cause)

    def _advise(self) -> None:
        """Say so if reading costs much more bytes than it uses."""
        root = self._spec.root.patient(_STORE_PATIENCE_S)
        for name, sha256 in self._spec.manifests.items():
            times = predict_selection(root, load_manifest(root, name, sha256))
            if advice := read_advice(name, times):
                _log.warning(advice)
                self._emit(EventType.READS_AMPLIFIED, dataset=name, times=round(times, 1), advice=advice)

    def _wait_for_images(self, feed: Feed, step: int) -> None:
        """Wait until every worker has its images.

        Workers whose images have come would wait for the others in a collective, and that gives up long before an
        outage of the storage is over.
        """
        begun_s = time.monotonic()
        stalled = False
        while not self._agreement.all_true(feed.ready(_POLL_S)):
            waited_s = time.monotonic() - begun_s
            if waited_s > _STALL_S and not stalled and self._has_started:
                stalled = True
                self._emit(EventType.DATA_STALLED, step=step, waited_s=round(waited_s, 1))
        if stalled:
            self._emit(EventType.DATA_RESUMED, step=step, waited_s=round(time.monotonic() - begun_s, 1))
        self._has_started = True

    def _new_training(self) -> tuple[ZeroEngine, TrainingStep]:
        student, teacher = Network(self._recipe), Network(self._recipe)
        student.init_weights(self._recipe.seed)
        teacher.load_state_dict(student.state_dict())
        engine = ZeroEngine(student, self._recipe.training, self._plan, self._device)
        return engine, TrainingStep(self._recipe, engine, teacher.to(self._device), self._clock.phase)

    def _restore(self) -> tuple[int, bytes]:
        """First step to compute, and the digest of ids up to it."""
        for verify_bytes in (False, True):
            choice = first_does(lambda verify=verify_bytes: self._choose(verify))  # type: ignore[misc]
            if choice is None:
                return 0, EMPTY
            try:
                load_state(self._store, choice.manifest, self._engine, self._training)
            except CorruptCheckpointError:
                if verify_bytes:
                    raise
                continue  # found while reading; choose again, reading every byte of the candidates
            for rejected in choice.rejected:
                self._emit(EventType.CHECKPOINT_REJECTED, step=rejected.step, reason=rejected.reason)
            self._emit(EventType.RESUMED, step=choice.manifest.step, from_workers=choice.manifest.world_size)
            return choice.manifest.step, bytes.fromhex(choice.manifest.digest_of_ids)
        raise AssertionError("the last round of the loop returns or raises")

    def _choose(self, verify_bytes: bool) -> Choice | None:
        return newest_good(self._store, self._log.read(), verify_bytes)

    def _checkpoint(self, done: int, ledger: SampleLedger) -> None:
        self._wait_for_store()
        # Before the commit: what a resumed run does not compute again must not be missing from its curve.
        self._metrics.flush()
        manifest = save_state(
            self._store, self._log, self._lease, done, ledger.exchange(), self._engine, self._training
        )
        first_does(self._retire)
        self._emit(EventType.CHECKPOINT_COMMITTED, step=done, size_bytes=manifest.size_bytes)

    def _wait_for_store(self) -> None:
        """Wait out an outage before a commit, which gives up earlier: others wait for it in collectives."""
        deadline_s = time.monotonic() + self._recipe.streaming.patience_s
        while not self._agreement.all_true(self._store_answers() or time.monotonic() > deadline_s):
            time.sleep(_POLL_S)

    def _store_answers(self) -> bool:
        try:
            self._store.patient(_POLL_S).exists(LOCK_KEY)
        except StorageError:
            return False
        return True

    def _retire(self) -> None:
        try:
            retire(self._store, self._log, self._lease, self._recipe.checkpoint.keep_last)
        except StorageError as error:  # the checkpoint is committed; the old one goes next time
            _log.warning("an old checkpoint could not be removed: %s", error)

    def _report(self, step: int, prepared: StepInput, result: StepResult) -> None:
        self._steps_to_report += 1
        for slot in prepared.slots:
            self._data_costs.update(
                data_bytes_read=slot.bytes_read, data_bytes_used=slot.bytes_used, data_retries=slot.retries
            )
        if (step + 1) % self._recipe.observe.log_every_steps and result.skipped is None:
            return
        seconds = self._clock.read()
        images, self._steps_to_report = self._recipe.training.global_batch * self._steps_to_report, 0
        if result.skipped is not None:  # its numbers are not finite: they belong to no curve
            reason, samples = result.skipped.reason, list(result.skipped.sample_ids)
            self._emit(EventType.STEP_SKIPPED, step=step, reason=reason, sample_ids=samples)
            return
        if not self._is_first:
            return
        self._metrics.write(
            step,
            **result.terms,
            lr=result.values.lr,
            teacher_temperature=result.values.teacher_temperature,
            ema_momentum=result.values.ema_momentum,
            **{f"gradient_norm_{name}": norm for name, norm in result.gradient_norms.items()},
            images_per_s=images / max(sum(seconds.values()), 1e-9),
            **self._data_costs,
            **seconds,
        )
        self._data_costs.clear()

    def _finish(self) -> None:
        self._log.append(
            self._lease,
            EndEntry(attempt=self._lease.attempt, step=self._recipe.training.steps, outcome="completed"),
        )
        self._emit(EventType.RUN_FINISHED, step=self._recipe.training.steps)

    def _emit(self, kind: EventType, **fields: object) -> None:
        if self._is_first:
            self._events.emit(kind, **fields)
