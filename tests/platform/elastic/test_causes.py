import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.elastic.causes import UNLIMITED, Budgets, Cause, NodeFate, WorkerFailure, classify, is_collateral
from heliostat.errors import FencedError, NonFiniteLossError, SnapshotLostError, StoreUnreachableError
from heliostat.training.collective import as_user_error

RESET = RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]: Connection reset by peer")
NCCL = RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network error")
DIED = RuntimeError("The actor died unexpectedly before finishing this task")
OOM = RuntimeError("Task was killed due to the node running low on memory.")
CUDA_OOM = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
ECC = RuntimeError("CUDA error: uncorrectable ECC error encountered")
BUG = ValueError("operands could not be broadcast together")
STORE = StoreUnreachableError("s3://b does not answer", "Wait")
NAN = NonFiniteLossError("step 4 is not finite", "Look at the samples")


def told(rank: int, error: BaseException, fate: NodeFate = NodeFate.ALIVE) -> WorkerFailure:
    return WorkerFailure(rank, f"n{rank}", fate, is_gone=False, error=error, traceback=f"trace {rank}")


def gone(rank: int, error: BaseException = DIED, fate: NodeFate = NodeFate.ALIVE) -> WorkerFailure:
    return WorkerFailure(rank, f"n{rank}", fate, is_gone=True, error=error)


@pytest.mark.parametrize(
    ("failures", "hung", "cause", "ranks"),
    [
        ([gone(1), told(0, RESET)], {}, Cause.WORKER_CRASH, (1,)),
        ([told(0, RESET), told(2, RESET)], {}, Cause.WORKER_CRASH, (0, 2)),  # who has gone has not been seen yet
        ([gone(1, fate=NodeFate.DEAD), told(0, RESET)], {}, Cause.NODE_LOST, (1,)),
        ([told(1, RESET, NodeFate.DEAD), told(0, RESET)], {}, Cause.NODE_LOST, (1,)),
        ([gone(1, fate=NodeFate.DRAINING), told(0, RESET)], {}, Cause.PREEMPTED, (1,)),  # earlier than announced
        ([gone(1, fate=NodeFate.DRAINING), gone(2, fate=NodeFate.DEAD)], {}, Cause.PREEMPTED, (1,)),
        ([told(1, BUG, NodeFate.DRAINING), told(0, RESET)], {}, Cause.USER_ERROR, (1,)),  # a notice excuses no bug
        ([told(0, BUG)], {}, Cause.USER_ERROR, (0,)),
        ([told(3, BUG), told(1, BUG), told(0, RESET)], {}, Cause.USER_ERROR, (1, 3)),
        ([told(0, NAN), told(1, NAN)], {}, Cause.USER_ERROR, (0, 1)),
        ([told(0, FencedError("attempt 3 holds the lease", "Stop"))], {}, Cause.USER_ERROR, (0,)),
        ([told(0, STORE), told(1, STORE)], {}, Cause.STORAGE, (0, 1)),
        ([told(0, SnapshotLostError("no holder", "Resume"))], {}, Cause.STORAGE, (0,)),
        ([gone(1, OOM), told(0, RESET)], {}, Cause.OUT_OF_MEMORY, (1,)),
        ([replace(gone(1), kernel_killed=True), told(0, RESET)], {}, Cause.OUT_OF_MEMORY, (1,)),
        ([told(1, CUDA_OOM), told(0, NCCL)], {}, Cause.OUT_OF_MEMORY, (1,)),
        ([told(1, ECC), told(0, NCCL)], {}, Cause.WORKER_CRASH, (1,)),
        ([told(0, as_user_error(CUDA_OOM)), told(1, as_user_error(CUDA_OOM))], {}, Cause.OUT_OF_MEMORY, (0, 1)),
        ([told(0, as_user_error(ECC)), told(1, as_user_error(ECC))], {}, Cause.WORKER_CRASH, (0, 1)),
        ([told(0, as_user_error(BUG)), told(1, as_user_error(BUG))], {}, Cause.USER_ERROR, (0, 1)),
        ([told(1, BUG), gone(0)], {}, Cause.WORKER_CRASH, (0,)),  # an error beside a death may be its consequence
        ([gone(2), told(0, RESET)], {2: 26.0}, Cause.HANG, (2,)),
        ([told(0, RESET)], {2: 26.0}, Cause.HANG, (2,)),
        ([gone(2, fate=NodeFate.DEAD), told(0, RESET)], {2: 26.0}, Cause.NODE_LOST, (2,)),  # its node went silently
        ([gone(2, fate=NodeFate.DRAINING), told(0, RESET)], {2: 26.0}, Cause.PREEMPTED, (2,)),
        ([gone(2), gone(1, fate=NodeFate.DEAD)], {2: 26.0}, Cause.HANG, (2,)),
    ],
)
def test_classify__table(
    failures: list[WorkerFailure], hung: dict[int, float], cause: Cause, ranks: tuple[int, ...]
) -> None:
    found = classify(failures, hung)
    assert (found.cause, found.ranks) == (cause, ranks)
    assert found.detail


def test_classify__user_errors_bring_the_first_worker_s_error_and_traceback() -> None:
    found = classify([told(3, BUG), told(0, RESET), told(1, BUG)])
    assert (found.error, found.traceback) == (BUG, "trace 1")
    assert found.detail == "ValueError: operands could not be broadcast together"


@given(order=st.permutations([told(0, RESET), gone(1), told(2, BUG), told(3, RESET)]))
def test_classify__does_not_depend_on_who_was_heard_first(order: list[WorkerFailure]) -> None:
    found = classify(order)
    assert (found.cause, found.ranks, found.nodes) == (Cause.WORKER_CRASH, (1,), ("n1",))


@pytest.mark.parametrize("error", [RESET, NCCL, RuntimeError("Timed out waiting 60000ms for recv operation")])
def test_is_collateral__what_collectives_say(error: Exception) -> None:
    assert is_collateral(error)


@pytest.mark.parametrize("error", [BUG, STORE, NAN, DIED, CUDA_OOM, KeyError("loss")])
def test_is_collateral__not_what_has_a_cause_of_its_own(error: Exception) -> None:
    assert not is_collateral(error)


def test_budgets__what_spot_nodes_do_is_free() -> None:
    budgets = Budgets(0, 0)
    assert all(budgets.allows(cause, 5, 0) for cause in UNLIMITED for _ in range(100))
    assert {budgets.pause_s(cause) for cause in UNLIMITED} == {0.0}


def test_budgets__user_errors_stop_at_once() -> None:
    assert not Budgets(100, 100).allows(Cause.USER_ERROR, 0, 0)


def test_budgets__failures_in_a_row_without_a_new_step() -> None:
    budgets = Budgets(2, 0)
    assert [budgets.allows(Cause.WORKER_CRASH, 7, 0) for _ in range(3)] == [True, True, False]
    assert budgets.allows(Cause.WORKER_CRASH, 8, 0)  # it has moved


def test_budgets__causes_do_not_share() -> None:
    budgets = Budgets(1, 0)
    assert budgets.allows(Cause.WORKER_CRASH, 3, 0)
    assert budgets.allows(Cause.PREEMPTED, 3, 0)
    assert budgets.allows(Cause.HANG, 3, 0)
    assert not budgets.allows(Cause.HANG, 3, 0)


def test_budgets__a_store_that_worked_is_given_time() -> None:
    budgets = Budgets(1, 60)
    assert [budgets.allows(Cause.STORAGE, 3, now) for now in (0, 1, 30, 60, 61)] == [True] * 4 + [False]
    assert budgets.allows(Cause.STORAGE, 4, 100)
    assert budgets.allows(Cause.STORAGE, 4, 160)


def test_budgets__a_store_that_never_worked_is_not() -> None:
    budgets = Budgets(1, 60)
    assert [budgets.allows(Cause.STORAGE, 0, now) for now in (0, 1)] == [True, False]


def test_pause_s__grows_with_failures_and_ends() -> None:
    budgets = Budgets(100, 0)
    pauses = []
    for _ in range(10):
        budgets.allows(Cause.WORKER_CRASH, 1, 0)
        pauses.append(budgets.pause_s(Cause.WORKER_CRASH))
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    budgets.allows(Cause.WORKER_CRASH, 2, 0)
    assert budgets.pause_s(Cause.WORKER_CRASH) == 0


def test_errors__travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(classify([told(0, NAN)]))).cause is Cause.USER_ERROR
