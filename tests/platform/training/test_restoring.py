"""Which state an attempt goes on from: one worker with the plain engine, a real store and real holders."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from support.small_ray import small_ray
from support.worlds import CPU_DEVICE, new_networks, step_input, tiny_recipe, whole_state

from heliostat.checkpoint.log import CommitLog
from heliostat.elastic.holders import Holder, find_parts
from heliostat.elastic.signals import MAILBOX, Assignment
from heliostat.errors import SnapshotLostError
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.step import TrainingStep
from heliostat.observe.events import EventType, read_events
from heliostat.storage import open_store
from heliostat.training.collective import Agreement
from heliostat.training.feed import slot_batch
from heliostat.training.ledger import EMPTY, SampleLedger
from heliostat.training.reporting import Reporter
from heliostat.training.restoring import Restored, Restorer
from heliostat.training.run_state import RunState
from heliostat.training.snapshots import Snapshots
from heliostat.training.state import save_state

pytestmark = pytest.mark.ray
RECIPE = tiny_recipe(steps=6)


class Forgetful(Holder):
    """Memory that can be broken."""

    def flip(self) -> None:
        """One bit of all that it holds."""
        for chunks in self._bytes.values():
            chunks[-1] = chunks[-1][:-1] + bytes([chunks[-1][-1] ^ 1])


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with small_ray():
        yield


@pytest.fixture(scope="module")
def actors(local_ray: None) -> list[Any]:
    """Slow to start: all tests have the same."""
    return [ray.remote(num_cpus=0)(Forgetful).remote() for _ in range(3)]


@pytest.fixture
def holders(actors: list[Any]) -> list[Any]:
    """Two that know nothing yet."""
    ray.get([each.begin.remote(0, None) for each in actors[:2]])
    return actors[:2]


@pytest.fixture
def mortal(actors: list[Any]) -> Any:
    """One that tests kill."""
    return actors[2]


class Worker:
    """The only one of an attempt."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(str(folder))
        self.log = CommitLog(self.store)
        student, teacher = new_networks(RECIPE)
        self.engine = PlainEngine(student, RECIPE.training)
        self.training = TrainingStep(RECIPE, self.engine, teacher)

    def run(self, holders: list[Any], steps: int, saved: int | None, kept: int | None) -> dict[int, Any]:
        """Train, with a checkpoint after some step and a snapshot after some other; the state after each step."""
        states = {}
        with ExitStack() as stack:
            lease = self.log.acquire_lease("test")
            reporter = Reporter(RECIPE, self.store, lease.attempt, 0, self.training.plan, CPU_DEVICE, stack, 1e6)
            ledger = SampleLedger(self.training.plan, EMPTY)
            MAILBOX.assignment = Assignment(tuple(holders), tuple(holders))
            snapshots = Snapshots(1, reporter, RunState(self.training, ledger, lease), 0)
            for step in range(steps):
                prepared = step_input(RECIPE, self.training.plan, 0, step)
                result = self.training.run(step, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots])
                ledger.consumed(prepared)
                reporter.step(step, prepared, result)
                states[step + 1] = whole_state(self.training, self.engine)
                if step + 1 == saved:
                    digest = ledger.exchange()
                    save_state(self.store, self.log, lease, saved, digest, self.training)
                if step + 1 == kept:
                    snapshots.take_if_due(False, kept)
            while snapshots.is_busy:
                snapshots._background.wait(1.0)
        return states

    def restore(self, holders: list[Any]) -> Restored | None:
        """As a new attempt."""
        return Restorer(self.store, self.log, Agreement(), self.training).restore(holders)

    def assert_is(self, state: dict[str, torch.Tensor]) -> None:
        """Every bit of it."""
        mine = whole_state(self.training, self.engine)
        assert mine.keys() == state.keys()
        assert [name for name in mine if not torch.equal(mine[name], state[name])] == []


@pytest.fixture(autouse=True)
def _own_mailbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAILBOX, "assignment", None)
    monkeypatch.setattr(MAILBOX, "lost_holder", False)


@pytest.mark.parametrize(
    ("saved", "kept", "from_memory"), [(1, 2, True), (None, 2, True), (2, 1, False), (2, 2, False)]
)
def test_restore__takes_the_newer_of_store_and_memory(
    tmp_path: Path, holders: list[Any], saved: int | None, kept: int | None, from_memory: bool
) -> None:
    states = Worker(tmp_path).run(holders, 3, saved, kept)
    new = Worker(tmp_path)
    restored = new.restore(holders)
    assert restored is not None
    assert (restored.manifest.step, restored.from_memory, restored.committed) == (2, from_memory, saved or 0)
    new.assert_is(states[2])


def test_restore__reads_from_the_holder_that_is_left(tmp_path: Path, holders: list[Any], mortal: Any) -> None:
    holders = [mortal, holders[1]]
    states = Worker(tmp_path).run(holders, 2, None, 2)
    ray.kill(holders[0])
    new = Worker(tmp_path)
    restored = new.restore(holders)
    assert restored is not None
    assert restored.from_memory
    new.assert_is(states[2])


def test_restore__goes_back_to_the_store_from_broken_memory(tmp_path: Path, holders: list[Any]) -> None:
    states = Worker(tmp_path).run(holders, 2, 1, 2)
    ray.get([each.flip.remote() for each in holders])
    new = Worker(tmp_path)
    restored = new.restore(holders)
    assert restored is not None
    assert (restored.manifest.step, restored.from_memory) == (1, False)
    new.assert_is(states[1])


def test_restore__of_broken_memory_alone_makes_the_next_attempt_begin_anew(tmp_path: Path, holders: list[Any]) -> None:
    Worker(tmp_path).run(holders, 1, None, 1)
    ray.get([each.flip.remote() for each in holders])
    with pytest.raises(SnapshotLostError, match="the snapshot after step 1 is not whole, and nothing is committed"):
        Worker(tmp_path).restore(holders)
    assert find_parts(holders) == []
    assert Worker(tmp_path).restore(holders) is None


def test_snapshots__that_not_all_holders_take_stop_no_training(tmp_path: Path, holders: list[Any], mortal: Any) -> None:
    holders = [mortal, holders[1]]
    ray.kill(mortal)
    worker = Worker(tmp_path)
    worker.run(holders, 2, None, 2)
    assert MAILBOX.lost_holder
    failed = [each for each in read_events(worker.store) if each.type == EventType.SNAPSHOT_FAILED]
    assert [each.fields["step"] for each in failed] == [2]
    assert ray.get(holders[1].size_bytes.remote()) == 0
    assert worker.restore(holders) is None
