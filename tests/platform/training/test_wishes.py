import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, EndEntry
from heliostat.checkpoint.requests import answered, ask, asked
from heliostat.errors import NotTrainingError
from heliostat.storage import Store, open_store
from heliostat.training.wishes import Wishes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def _commit(log: CommitLog, step: int) -> None:
    lease = log.acquire_lease("test")
    log.append(lease, CheckpointEntry(attempt=lease.attempt, step=step, manifest_key="m", manifest_sha256="0" * 64))


def test_request__is_seen_taken_once_and_answered_by_a_commit(store: Store) -> None:
    log = CommitLog(store)
    log.acquire_lease("test")
    with ExitStack() as stack:
        wishes = Wishes(store, None, stack, look_s=0.01)
        assert not wishes.is_any()
        key = ask(store)
        assert _within(10, wishes.is_any)
        taken = wishes.take()
        assert taken == {key}
        assert not wishes.is_any()  # while it is being written
        assert answered(store, key) is None
        later = ask(store)  # after the copy was made: another checkpoint
        assert _within(10, wishes.is_any)
        _commit(log, 10)
        wishes.answer(taken)
        entry = answered(store, key)
        assert entry is not None
        assert entry.step == 10
        assert asked(store) == {later}
        assert wishes.take() == {later}


def test_wish__by_time(store: Store) -> None:
    with ExitStack() as stack:
        wishes = Wishes(store, 0.1 / 60, stack)
        assert not wishes.is_any()
        assert _within(10, wishes.is_any)
        assert wishes.take() == frozenset()
        assert not wishes.is_any()
        assert _within(10, wishes.is_any)


def test_ask__of_a_run_that_does_not_train(store: Store) -> None:
    with pytest.raises(NotTrainingError, match=r"HS-RUN-007.*no attempt"):
        ask(store)
    log = CommitLog(store)
    lease = log.acquire_lease("test")
    key = ask(store)
    log.append(lease, EndEntry(attempt=1, step=5, outcome="completed"))
    with pytest.raises(NotTrainingError, match="finished"):
        ask(store)
    with pytest.raises(NotTrainingError, match="finished meanwhile"):
        answered(store, key)
