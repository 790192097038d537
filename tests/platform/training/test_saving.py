"""Saving beside training, by two workers with a real engine: several runs of one pair of processes, slow to start."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mortal_store import BeforeWrite, Gate, MortalStore, Refusal
from support.worlds import CPU_DEVICE, new_networks, run_world, step_input, tiny_recipe

from heliostat.checkpoint.format import checkpoint_folder
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, EndEntry, Lease
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.requests import ask, asked
from heliostat.checkpoint.verify import load_manifest, newest_good
from heliostat.config.checkpoint import CheckpointConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import FencedError, HeliostatError, StoreFailedError
from heliostat.objectives.step import TrainingStep
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import read_metrics
from heliostat.storage import Store, open_store
from heliostat.training.collective import Agreement, first_does, first_does_long
from heliostat.training.feed import slot_batch
from heliostat.training.ledger import EMPTY, SampleLedger
from heliostat.training.reporting import Reporter
from heliostat.training.restoring import Restorer
from heliostat.training.run_state import RunState
from heliostat.training.saving import Saver
from heliostat.training.state import owned_slices
from heliostat.training.zero import ZeroEngine

Slices = dict[tuple[str, str, int], torch.Tensor]


class Worker:
    """One worker of a run whose store may misbehave."""

    def __init__(self, rank: int, world_size: int, recipe: PretrainRecipe) -> None:
        self.rank = rank
        self.recipe = recipe
        student, teacher = new_networks(recipe)
        self.engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), CPU_DEVICE)
        self.training = TrainingStep(recipe, self.engine, teacher)
        self.agreement = Agreement()
        self.ledger = SampleLedger(self.training.plan, EMPTY)
        self.done = 0

    def begin(self, folder: str, before_write: BeforeWrite | None, stack: ExitStack) -> tuple[Saver, Lease]:
        """A new run from where training is."""
        store = open_store(folder)
        lease = first_does(lambda: CommitLog(store).acquire_lease("test"))
        reporter = Reporter(self.recipe, store, lease.attempt, self.rank, self.training.plan, CPU_DEVICE, stack, 1e6)
        slow = store if before_write is None else MortalStore(store, before_write)
        state = RunState(self.training, self.ledger, lease)
        self._reporter = reporter
        return Saver(self.recipe, slow, reporter, self.agreement, state, self.done, stack), lease

    def step(self, saver: Saver) -> None:
        """Train one step, and go over the boundary after it."""
        prepared = step_input(self.recipe, self.training.plan, self.rank, self.done)
        result = self.training.run(self.done, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots])
        self.ledger.consumed(prepared)
        self._reporter.step(self.done, prepared, result)
        saver.note(result, {})
        self.done += 1
        saver.save_if_due(saver.vote(has_images=True), self.done)

    def idle(self, saver: Saver) -> None:
        """Wait at a boundary until nothing is being written, and go over it."""
        while (vote := saver.vote(has_images=True)).is_saving:
            time.sleep(0.02)
        saver.save_if_due(vote, self.done)

    def slices(self) -> Slices:
        """A copy of this worker's state."""
        return {
            (each.kind, each.parameter, each.offset): each.values.detach().clone()
            for each in owned_slices(self.training)
        }

    def shared_error(self, saver: Saver) -> str:
        """The error at one of the next boundaries."""
        for _ in range(500):
            try:
                self.step(saver) if self.done < 6 else saver.vote(has_images=True)
            except HeliostatError as error:
                return f"{type(error).__name__} {error}"
            time.sleep(0.01)
        return "none"


def flip_last_byte(store: Store, key: str) -> None:
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


def slowly(result: str) -> str:
    time.sleep(0.2)
    return result


def work(rank: int, world_size: int, recipe: PretrainRecipe, folder: str) -> dict[str, Any]:
    """All runs, one after another."""
    torch.manual_seed(rank)
    seen: dict[str, Any] = {"states": {}}
    worker = Worker(rank, world_size, recipe)
    seen["long"] = first_does_long(worker.agreement, lambda: slowly("of rank 0"))

    gate = Gate()
    with ExitStack() as stack:
        saver, _ = worker.begin(f"{folder}/pending", gate if rank == 1 else None, stack)
        for _ in range(5):
            worker.step(saver)  # due after 2, and again after 4 while rank 1's part of the first is not written
            seen["states"][worker.done] = worker.slices()
        gate.is_open.set()
        worker.idle(saver)
        worker.step(saver)
        seen["states"][worker.done] = worker.slices()
        saver.finish()

    store = open_store(f"{folder}/pending")
    first_does(lambda: flip_last_byte(store, f"{checkpoint_folder(6, 1)}/rank-00001.safetensors"))
    restored = Restorer(store, CommitLog(store), worker.agreement, worker.training).restore()
    seen["restored"] = restored and (restored.manifest.step, restored.rejected)
    seen["state"] = worker.slices()
    first_does(lambda: flip_last_byte(store, f"{checkpoint_folder(6, 1)}/rank-00001.safetensors"))  # as it was

    worker.done = 1
    with ExitStack() as stack:
        refusal = Refusal()
        saver, _ = worker.begin(f"{folder}/refused", refusal if rank == 1 else None, stack)
        if rank == 1:
            refusal.error = StoreFailedError("the disk is full", "Free space there")
        seen["refused"] = worker.shared_error(saver)

    worker.done = 1
    with ExitStack() as stack:
        saver, _ = worker.begin(f"{folder}/fenced", None, stack)
        first_does(lambda: CommitLog(open_store(f"{folder}/fenced")).acquire_lease("another"))
        seen["fenced"] = worker.shared_error(saver)

    worker.done = 2
    with ExitStack() as stack:
        saver, _ = worker.begin(f"{folder}/asked", None, stack)
        first_does(lambda: ask(open_store(f"{folder}/asked")))
        deadline_s = time.monotonic() + 30
        while not saver.vote(has_images=False).wanted and time.monotonic() < deadline_s:
            time.sleep(0.05)
        worker.step(saver)
        worker.idle(saver)
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saving")


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each worker saw."""
    recipe = tiny_recipe(steps=6).model_copy(update={"checkpoint": CheckpointConfig(every_steps=2, keep_last=9)})
    return run_world(2, work, recipe, str(folder))


def test_saver__a_trigger_during_a_save_is_taken_at_the_first_boundary_after(
    seen: list[dict[str, Any]], folder: Path
) -> None:
    entries = CommitLog(open_store(str(folder / "pending"))).read()
    assert [entry.step for entry in entries if isinstance(entry, CheckpointEntry)] == [2, 5, 6]
    assert isinstance(entries[-1], EndEntry)


@pytest.mark.parametrize("step", [2, 5, 6])
def test_saver__writes_the_state_of_the_boundary_though_training_goes_on(
    seen: list[dict[str, Any]], folder: Path, step: int
) -> None:
    store = open_store(str(folder / "pending"))
    entries = [each for each in CommitLog(store).read() if isinstance(each, CheckpointEntry) and each.step == step]
    reader = CheckpointReader(store, load_manifest(store, entries[0]))
    for worker in seen:
        for (kind, parameter, offset), values in worker["states"][step].items():
            assert torch.equal(reader.read(kind, parameter, offset, offset + len(values)), values), (kind, parameter)
    if step > 2:
        assert not torch.equal(*(_first_master(seen[0]["states"][each]) for each in (2, step)))


def test_restore__falls_back_from_a_flipped_byte_and_names_it(seen: list[dict[str, Any]]) -> None:
    for worker in seen:
        step, (rejected,) = worker["restored"]
        assert (step, rejected.step, rejected.attempt) == (5, 6, 1)
        assert "rank-00001.safetensors are not those committed" in rejected.reason
        for name, values in worker["states"][5].items():
            assert torch.equal(worker["state"][name], values), name


def _first_master(slices: Slices) -> torch.Tensor:
    return next(values for (kind, _, _), values in slices.items() if kind == "master")


def test_saver__the_curve_is_there_before_the_commit_and_its_loss_is_in_the_log(
    seen: list[dict[str, Any]], folder: Path
) -> None:
    store = open_store(str(folder / "pending"))
    losses = {line.step + 1: line.values["loss"] for line in read_metrics(store)}
    entries = [each for each in CommitLog(store).read() if isinstance(each, CheckpointEntry)]
    assert {entry.step: entry.metrics["loss"] for entry in entries} == {step: losses[step] for step in (2, 5, 6)}
    committed = [event for event in read_events(store) if event.type == EventType.CHECKPOINT_COMMITTED]
    assert [event.fields["step"] for event in committed] == [2, 5, 6]
    assert all(event.fields["blocked_s"] <= event.fields["total_s"] for event in committed)


def test_saver__one_workers_failure_in_the_background_ends_all(seen: list[dict[str, Any]], folder: Path) -> None:
    expected = f"{StoreFailedError.__name__} HS-STOR-008: the disk is full. Free space there."
    assert [worker["refused"] for worker in seen] == [expected, expected]
    store = open_store(str(folder / "refused"))
    assert newest_good(store, CommitLog(store).read()) is None


def test_saver__a_newer_attempt_ends_all_workers(seen: list[dict[str, Any]]) -> None:
    first, second = (worker["fenced"] for worker in seen)
    assert first == second
    assert first.startswith(f"{FencedError.__name__} HS-RUN-001: attempt 2 of")


def test_saver__a_request_is_a_checkpoint_of_the_next_step(seen: list[dict[str, Any]], folder: Path) -> None:
    store = open_store(str(folder / "asked"))
    entries = [each.step for each in CommitLog(store).read() if isinstance(each, CheckpointEntry)]
    assert entries == [3]
    assert not asked(store)


def test_first_does_long__gives_all_workers_the_result(seen: list[dict[str, Any]]) -> None:
    assert [worker["long"] for worker in seen] == ["of rank 0"] * 2
