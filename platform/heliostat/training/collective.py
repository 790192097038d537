"""What workers tell each other, beside gradients: reductions, decisions of rank 0, and errors that all must share.

A worker that raises alone leaves the others waiting in a collective until it times out; so errors are exchanged and
raised by all. Without a process group this process is the only worker.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.elastic.signals import MAILBOX
from heliostat.errors import HeliostatError, TrainingFailedError

T = TypeVar("T")

_log = logging.getLogger(__name__)

_ASK_S = 5.0


def worker_rank() -> int:
    """Of this worker."""
    return dist.get_rank() if dist.is_initialized() else 0


def worker_count() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


class ProcessGroupReducer:
    """Reductions over all workers by ``torch.distributed``."""

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the workers."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Element-wise maximum over the workers."""
        return self._reduced(values, dist.ReduceOp.MAX)

    @staticmethod
    def _reduced(values: Tensor, operation: Any) -> Tensor:
        MAILBOX.meets_others()
        result = values.clone()
        dist.all_reduce(result, operation)
        return result


class Agreement:
    """Questions to all workers that cost no device a synchronisation. All make one at the same place."""

    def __init__(self) -> None:
        over_gpus = dist.is_initialized() and dist.get_backend() == "nccl"
        self._group = dist.new_group(backend="gloo") if over_gpus else None

    def any(self, *mine: bool) -> tuple[bool, ...]:
        """For each question, whether any worker says so."""
        MAILBOX.beat()
        if worker_count() == 1:
            return mine
        votes = torch.tensor(mine, dtype=torch.uint8)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(vote) for vote in votes)


def all_do(work: Callable[[], T]) -> list[T]:
    """Do ``work`` on every worker; the results by rank, or the first worker's user-facing error on all of them."""
    outcomes: list[Any] = [_outcome(work)]
    if worker_count() > 1:
        mine, outcomes = outcomes[0], [None] * worker_count()
        dist.all_gather_object(outcomes, mine)
    return [_result(outcome) for outcome in outcomes]


def first_does(work: Callable[[], T]) -> T:
    """Do ``work`` on rank 0 alone; its result, or its user-facing error, on all workers."""
    shared: list[Any] = [_outcome(work) if worker_rank() == 0 else None]
    if worker_count() > 1:
        dist.broadcast_object_list(shared, src=0)
    return cast(T, _result(shared[0]))


def first_does_long(agreement: Agreement, work: Callable[[], T]) -> T:
    """``first_does`` for what may take longer than a collective waits: rank 0 works in a thread meanwhile."""
    if worker_rank() != 0:
        while agreement.any(False)[0]:
            pass
        return first_does(work)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_outcome, work)
        while agreement.any(not wait([future], _ASK_S).done)[0]:
            pass
        return first_does(lambda: cast(T, _result(future.result())))


def _outcome(work: Callable[[], T]) -> tuple[T | None, HeliostatError | None]:
    try:
        return work(), None
    except Exception as error:  # the others wait for an answer
        _log.debug("a piece of a worker's work failed", exc_info=True)
        return None, as_user_error(error)


def as_user_error(error: Exception, work: str = "a training worker") -> HeliostatError:
    """An error of any kind as one that can be told to all workers and to the user."""
    if isinstance(error, HeliostatError):
        return error
    return TrainingFailedError(
        f"{work} failed: {type(error).__name__}: {error}",
        "Run the same command again to resume from the last checkpoint; --debug shows more",
    )


def _result(outcome: tuple[Any, HeliostatError | None]) -> Any:
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def gather_rows(rows: Tensor) -> list[Tensor]:
    """The workers' tensors, which differ in their first dimension, by rank."""
    if worker_count() == 1:
        return [rows]
    device = _wire_device()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [part[: int(size)].cpu() for part, size in zip(gathered, sizes, strict=True)]


def _wire_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
