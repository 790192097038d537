"""One worker's part in one attempt of a run: restore, train, commit. Runs inside Ray Train, or alone in a process."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from heliostat.checkpoint.log import CommitLog, Lease
from heliostat.checkpoint.retention import sweep
from heliostat.config.distill import DistillRecipe
from heliostat.config.network import NetworkRecipe
from heliostat.config.training import TrainingConfig, TrainingRecipe
from heliostat.data.samples import SampleSource, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.elastic.holders import take_over
from heliostat.elastic.signals import MAILBOX
from heliostat.errors import HeliostatError
from heliostat.models.backbones import Backbone
from heliostat.objectives.distillation import DistillationStep
from heliostat.objectives.engine import Engine
from heliostat.objectives.learner import Learner
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep, copied_backbone
from heliostat.objectives.step_state import StepResult
from heliostat.observe.events import EventType
from heliostat.observe.logs import configure_logging
from heliostat.observe.metrics import KNN
from heliostat.storage import Store
from heliostat.storage.layout import run_store
from heliostat.training.collective import Agreement, all_do, first_does, first_does_long, worker_count, worker_rank
from heliostat.training.determinism import make_deterministic
from heliostat.training.feed import Feed, StepInput, slot_batch
from heliostat.training.first_steps import fall_of, first_steps_of, judged_before
from heliostat.training.inputs import amplified_reads, sample_source, sample_stream
from heliostat.training.ledger import EMPTY, SampleLedger
from heliostat.training.planning.networks import Networks
from heliostat.training.reporting import Reporter
from heliostat.training.restoring import Restorer
from heliostat.training.run_state import RunState
from heliostat.training.saving import Saver
from heliostat.training.snapshots import Snapshots
from heliostat.training.students import StartingPoint, needs_start, new_training, teacher_of
from heliostat.training.teacher_views import view_folder
from heliostat.training.zero import ZeroEngine

_log = logging.getLogger(__name__)

_POLL_S = 5.0
_STALL_S = 15.0
"""Seconds without images after which the run says so."""
_STORE_PATIENCE_S = 100.0
"""How long a worker may wait for the store while others wait for it: less than their collectives do."""


class Probe(Protocol):
    """Judges a backbone, on one worker while the others wait; travels to it."""

    def __call__(self, backbone: Backbone) -> Mapping[str, float]:
        """Numbers by name, for the metrics of the step."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What every worker has to know."""

    recipe: TrainingRecipe
    root: Store
    """The opened root: a relative path in the recipe means another folder in a worker, which runs elsewhere."""
    manifests: dict[str, str]
    """Hash of the manifest that the run has pinned, by name of the dataset."""
    probe: Probe | None = None
    """Judges the networks that will be delivered every ``observe.knn.every_steps``."""
    start: StartingPoint | None = None
    """That a distillation learns from, or an adaptation goes on with."""


def train_attempt(config: dict[str, Any]) -> None:
    """Ray Train's entry into a worker: ``config["spec"]`` is a ``RunSpec``."""
    run_attempt(config["spec"])


def run_attempt(spec: RunSpec, after_step: Callable[[int], None] = lambda step: None) -> None:
    """A worker's part in an attempt, in a worker of Ray Train.

    Args:
        spec: What every worker has to know.
        after_step: Called with the index of each step that was made, before the next one is begun.
    """
    configure_logging()
    with ExitStack() as stack:
        worker = AttemptWorker(spec, RayWorker(), stack)
        try:
            for step, _ in worker.steps():
                after_step(step)
        except BaseException as error:
            worker.ended(str(error) or type(error).__name__)
            raise
        worker.ended("completed")


class StepSource(Protocol):
    """Makes what a step takes; see ``Feed``."""

    def ready(self, timeout_s: float) -> bool:
        """Whether ``take`` will not wait, after waiting up to ``timeout_s`` for that."""

    def take(self) -> StepInput:
        """The next step."""


class Place(Protocol):
    """Where a worker computes, and with what."""

    device: torch.device

    def new_engine(self, student: Network, training: TrainingConfig, plan: SlotPlan, stack: ExitStack) -> Engine:
        """Holds the student from now on; closed by the stack."""

    def new_feed(
        self, recipe: TrainingRecipe, plan: SlotPlan, first_step: int, source: SampleSource, stack: ExitStack
    ) -> StepSource:
        """Makes the worker's steps from the first one on; closed by the stack."""


class RayWorker:
    """A worker of Ray Train, with DeepSpeed and feeders."""

    def __init__(self) -> None:
        import ray.train.torch

        self.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # the collectives of objects choose their device by it

    def new_engine(self, student: Network, training: TrainingConfig, plan: SlotPlan, stack: ExitStack) -> ZeroEngine:
        """DeepSpeed's."""
        return stack.enter_context(closing(ZeroEngine(student, training, plan, self.device)))

    def new_feed(
        self, recipe: TrainingRecipe, plan: SlotPlan, first_step: int, source: SampleSource, stack: ExitStack
    ) -> Feed:
        """Processes of Ray."""
        rank = worker_rank()
        share = WorkerShare(plan, rank, recipe.training.slot_batch)
        stream = sample_stream(source, share, recipe.training.steps)
        on_cpu = self.device.type == "cpu"
        return stack.enter_context(closing(Feed(recipe, plan, rank, first_step, stream, photometric=on_cpu)))


class AttemptWorker:
    """State and loop of one worker."""

    def __init__(self, spec: RunSpec, place: Place, stack: ExitStack) -> None:
        recipe = self._recipe = spec.recipe
        if recipe.training.deterministic:
            make_deterministic()
        self._store = run_store(spec.root, recipe.name).patient(_STORE_PATIENCE_S)
        self._rank, world_size = worker_rank(), worker_count()
        self._place = place
        self._plan = SlotPlan(recipe.training.slots, world_size)
        self._log = CommitLog(self._store)
        self._lease: Lease = first_does(lambda: self._log.acquire_lease(f"{socket.gethostname()}:{os.getpid()}"))
        networks = Networks.of(recipe, teacher_of(recipe, spec.start))
        flops = networks.flops(self._plan.rounds).model / recipe.training.global_batch
        attempt = self._lease.attempt
        self._reporter = Reporter(recipe, self._store, attempt, self._rank, self._plan, place.device, stack, flops)
        self._reporter.event(EventType.ATTEMPT_STARTED, workers=world_size, device=place.device.type)
        self._has_started = False
        self._has_begun = False
        self.is_finished = False
        self._agreement = Agreement()
        MAILBOX.attempt_begins(self._lease.attempt)
        self._spec = spec
        self._stack = stack

    def steps(self) -> Iterator[tuple[int, StepResult]]:
        """From the newest good checkpoint to the last step: each step that was made, after it. Once per attempt.

        Raises:
            RuntimeError: it was asked for before; a new attempt goes on from the last checkpoint.
        """
        if self._has_begun:
            raise RuntimeError("the steps of an attempt can be gone through once; begin a new single_process_run")
        self._has_begun = True
        # What dead attempts left half-written.
        first_does_long(self._agreement, lambda: sweep(self._store, self._log, self._lease))
        spec = self._spec
        patient = spec.root.patient(spec.recipe.streaming.patience_s)
        views = view_folder(spec.recipe, patient, spec.start, self._place.device.type)
        source = sample_source(spec.recipe, spec.root, spec.manifests, self._plan.world_size, views)
        all_do(lambda: source.order)  # opens the datasets: what is wrong with them is an error of all workers
        first_does(self._advise)
        self.training = self._new_training()
        first_step, saved, digest = self._restore()
        self._judge_start(first_step)
        state = RunState(self.training, SampleLedger(self._plan, digest), self._lease)
        self._saver = self._new_saver(state, saved)
        self._snapshots = self._new_snapshots(state, first_step)
        with ExitStack() as until_the_last_step:
            feed = self._place.new_feed(self._recipe, self._plan, first_step, source, until_the_last_step)
            for step in range(first_step, self._recipe.training.steps):
                with self._reporter.profiler.step(step):
                    result = self._train_step(step, feed, state.ledger)
                yield step, result
        MAILBOX.steps_pause()
        self._saver.finish()
        self.is_finished = True

    def ended(self, cause: str) -> None:
        """Note why the attempt stopped."""
        self._reporter.event(EventType.ATTEMPT_ENDED, cause=cause)

    def _train_step(self, step: int, feed: StepSource, ledger: SampleLedger) -> StepResult:
        self._wait_for_images(feed, step)
        with self._reporter.clock.phase("data_wait_s"):
            prepared = feed.take()
        for cause in prepared.deaths:
            self._reporter.event_of_worker(EventType.FEEDER_REPLACED, step=step, cause=cause)
        result = self.training.run(step, [slot_batch(slot, self._place.device) for slot in prepared.slots])
        MAILBOX.step_ends(step + 1)
        ledger.consumed(prepared)
        judged = self._judge(step)
        self._reporter.step(step, prepared, result, judged)
        self._saver.note(result, judged)
        return result

    def _judge_start(self, first_step: int) -> None:
        """What is gone on with, before its first step: what the first steps are compared with."""
        self._knn_before: float | None = None
        if self._spec.probe is None or first_step >= first_steps_of(self._recipe):
            return
        if first_step == 0:
            self._knn_before = self._ask_probe(self._spec.probe, 0).get(KNN)
            if self._knn_before is not None:
                self._reporter.event(EventType.START_JUDGED, **{KNN: self._knn_before})
        else:
            self._knn_before = first_does(self._judged_before)

    def _judged_before(self) -> float | None:
        try:
            return judged_before(self._store)
        except HeliostatError as error:
            _log.warning("what the run went on with cannot be compared any more: %s", error)
            return None

    def _judge(self, step: int) -> Mapping[str, float]:
        """What the probe says of what will be delivered, if it is time to ask."""
        probe, every_steps = self._spec.probe, self._recipe.observe.knn.every_steps
        is_due = bool(every_steps) and ((step + 1) % every_steps == 0 or step + 1 == first_steps_of(self._recipe))
        if probe is None or not is_due:
            return {}
        judged = self._ask_probe(probe, step)
        fall = fall_of(self._recipe, step, self._knn_before, judged)
        if fall is not None:
            if self._rank == 0:
                _log.warning("after step %d %s", step, fall.advice)
            self._reporter.event(EventType.KNN_FELL, step=step, before=fall.before, after=fall.after)
        return judged

    def _ask_probe(self, probe: Probe, step: int) -> Mapping[str, float]:
        """What it says of the networks as they are; what it cannot say stops no training.

        Of several students each number has the student's name in front, and their mean has its own.
        """
        with self._reporter.clock.phase("evaluation_s"):
            try:
                judged = [self._judge_one(learner, probe) for learner in self.training.learners]
            except HeliostatError as error:
                _log.warning("the run after step %d could not be judged: %s", step, error)
                self._reporter.event(EventType.EVALUATION_FAILED, step=step, reason=str(error))
                return {}
        names = [learner.prefix for learner in self.training.learners]
        means = {name: sum(each[name] for each in judged) / len(judged) for name in judged[0]}
        return {prefix + name: each[name] for prefix, each in zip(names, judged, strict=True) for name in each} | means

    def _judge_one(self, learner: Learner, probe: Probe) -> Mapping[str, float]:
        with learner.whole_average() as backbone:
            return first_does_long(self._agreement, lambda: probe(copied_backbone(backbone)))

    def _advise(self) -> None:
        """Say so if reading costs much more bytes than it uses."""
        root = self._spec.root.patient(_STORE_PATIENCE_S)
        for name, times, advice in amplified_reads(root, self._spec.manifests):
            _log.warning(advice)
            self._reporter.event(EventType.READS_AMPLIFIED, dataset=name, times=times, advice=advice)

    def _wait_for_images(self, feed: StepSource, step: int) -> None:
        """Wait until every worker has its images; meanwhile, save what was done before if that is due.

        Workers whose images have come would wait for the others in a collective, and that gives up long before an
        outage of the storage is over.
        """
        begun_s = time.monotonic()
        stalled = False
        while self._some_wait(feed, step):
            waited_s = time.monotonic() - begun_s
            if waited_s > _STALL_S and not stalled and self._has_started:
                stalled = True
                self._reporter.event(EventType.DATA_STALLED, step=step, waited_s=round(waited_s, 1))
        waited_s = time.monotonic() - begun_s
        if stalled:
            self._reporter.event(EventType.DATA_RESUMED, step=step, waited_s=round(waited_s, 1))
        if not self._has_started:
            self._has_started = True
            self._reporter.event(EventType.DATA_READY, step=step)

    def _some_wait(self, feed: StepSource, step: int) -> bool:
        with self._reporter.clock.phase("data_wait_s"):
            is_copying = self._snapshots is not None and self._snapshots.is_busy
            vote = self._saver.vote(feed.ready(_POLL_S), is_copying)
        self._note_orders(step)
        if vote.stopping:
            MAILBOX.steps_pause()
            self._saver.stop(step)
        self._saver.save_if_due(vote, step)
        if self._snapshots is not None:
            self._snapshots.take_if_due(vote.is_copying, step)
        if not vote.waits:
            MAILBOX.step_begins()
        return vote.waits

    def _note_orders(self, step: int) -> None:
        while MAILBOX.received:
            order, told_utc = MAILBOX.received.popleft()
            self._reporter.event_of_worker(EventType.ORDER_RECEIVED, step=step, order=order, told_utc=told_utc)

    def _new_saver(self, state: RunState, saved: int) -> Saver:
        store = run_store(self._spec.root, self._recipe.name)
        return Saver(self._recipe, store, self._reporter, self._agreement, state, saved, self._stack)

    def _new_snapshots(self, state: RunState, first_step: int) -> Snapshots | None:
        every_steps = self._recipe.checkpoint.memory_every_steps
        if not every_steps or MAILBOX.assignment is None:
            return None
        return Snapshots(every_steps, self._reporter, state, first_step)

    def _new_training(self) -> TrainingStep | DistillationStep:
        def new_engine(student: Network, recipe: NetworkRecipe) -> Engine:
            return self._place.new_engine(student, recipe.training, self._plan, self._stack)

        return new_training(self._recipe, new_engine, self._trained(), self._place.device, self._reporter.clock.phase)

    def _trained(self) -> tuple[Network, ...]:
        start = self._spec.start
        if start is None or not first_does_long(self._agreement, lambda: needs_start(self._recipe, self._log.read())):
            return ()
        root = self._spec.root.patient(_STORE_PATIENCE_S)
        loaded: list[Network] = []
        is_kept = isinstance(self._recipe, DistillRecipe) and self._recipe.teacher.cache
        # What is wrong with it is an error of all workers.
        all_do(lambda: loaded.extend(start.load(root, self._recipe, heads_alone=is_kept)))
        return tuple(loaded)

    def _restore(self) -> tuple[int, int, bytes]:
        """First step to compute, steps that are committed, and the digest of ids up to the first step."""
        holders = MAILBOX.assignment.holders if MAILBOX.assignment is not None else ()
        restorer = Restorer(self._store, self._log, self._agreement, self.training)
        restored = restorer.restore(holders)
        manifest = restored.manifest if restored is not None else None
        if holders:
            resumed = (manifest.attempt, manifest.step) if restored and manifest and restored.from_memory else None
            first_does(lambda: take_over(holders, self._lease.attempt, resumed))
        if restored is None or manifest is None:
            return 0, 0, EMPTY
        MAILBOX.steps_done = manifest.step
        for rejected in restored.rejected:
            self._reporter.event(EventType.CHECKPOINT_REJECTED, step=rejected.step, reason=rejected.reason)
        self._reporter.adopt_metrics(restored.lines)
        source = "memory" if restored.from_memory else "storage"
        self._reporter.event(EventType.RESUMED, step=manifest.step, from_workers=manifest.world_size, source=source)
        return manifest.step, restored.committed, bytes.fromhex(manifest.digest_of_ids)
