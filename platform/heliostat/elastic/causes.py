"""Why an attempt was interrupted, from what its workers and their nodes look like; and how often that is bearable.

Pure: what went wrong comes in as data, and what to make of it goes out. When one worker dies, the others' collectives
fail with it; so the question is never what the first error says, but which of them is the cause.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from heliostat.errors import HeliostatError, SnapshotLostError, StorageError, TrainingFailedError


class Cause(StrEnum):
    """What interrupts an attempt."""

    RESIZE = "resize"
    """Planned: workers stopped after a step that was saved, to go on in another number."""
    PREEMPTED = "preempted"
    """A node was taken away that had been announced to go, in time or early; planned, if there was time to save."""
    NODE_LOST = "node_lost"
    WORKER_CRASH = "worker_crash"
    HANG = "hang"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE = "storage"
    START_FAILED = "start_failed"
    """Workers could not be started: their nodes went away meanwhile, or the resources were taken."""
    USER_ERROR = "user_error"
    """An error in the recipe, the data or the code: trying again would meet it again."""


class NodeFate(StrEnum):
    """What has become of a worker's node."""

    ALIVE = "alive"
    DRAINING = "draining"
    """Announced to go."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """How a worker ended."""

    rank: int
    node: str
    """Id of its node."""
    fate: NodeFate
    is_gone: bool
    """The process is dead or does not answer; otherwise it told the error itself."""
    error: BaseException
    """What it told, or what Ray says of its death, without the layers that carried it here."""
    traceback: str = ""
    kernel_killed: bool = False
    """Whether the kernel of its node has ended a process for want of memory since the attempt began."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """What interrupted an attempt."""

    cause: Cause
    ranks: tuple[int, ...] = ()
    """The workers that it began with."""
    nodes: tuple[str, ...] = ()
    detail: str = ""
    """One line for people."""
    error: BaseException | None = None
    """The first error that is a cause and no consequence, if a worker told one."""
    traceback: str = ""


_COLLATERAL = re.compile(
    r"connection (reset|closed|refused)|connection was (reset|closed)|broken pipe|socket ?timeout|"
    r"timed out (after|waiting)|gloo|nccl|default process group has not been initialized|"
    r"(store|barrier) .*timeout|torch\.?distributed|recvvalue failed|process group",
    re.IGNORECASE,
)
"""What collectives say when another worker has gone."""
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|low on memory", re.IGNORECASE)
_HARDWARE = re.compile(r"CUDA error|cuBLAS|cuDNN|uncorrectable ECC|Xid", re.IGNORECASE)


def is_collateral(error: BaseException) -> bool:
    """Whether an error only says that another worker is gone."""
    return not isinstance(error, HeliostatError) and bool(_COLLATERAL.search(f"{type(error).__name__}: {error}"))


def classify(failures: Sequence[WorkerFailure], hung: Mapping[int, float] | None = None) -> Interruption:
    """The cause behind the failures of an attempt's workers.

    Args:
        failures: Of the workers that have failed; not empty.
        hung: Workers that were ended because they had not moved for so many seconds.
    """
    # Who hangs is to blame for the others; but a node that goes without a word looks like a hang of its workers.
    blamed = [each for each in failures if each.rank in hung] if hung else failures
    for cause, chosen in (
        (Cause.PREEMPTED, [each for each in blamed if each.is_gone and each.fate is NodeFate.DRAINING]),
        (Cause.NODE_LOST, [each for each in blamed if each.fate is NodeFate.DEAD]),
    ):
        if chosen:
            return _of(cause, chosen)
    if hung:
        return _of(Cause.HANG, blamed or failures, _silence(hung), tuple(sorted(hung)))
    told = [each for each in failures if not each.is_gone and not is_collateral(each.error)]
    gone = [each for each in failures if each.is_gone]
    if told and not gone:
        return _told(told)
    if gone:
        short = [each for each in gone if each.kernel_killed or _OUT_OF_MEMORY.search(str(each.error))]
        return _of(Cause.OUT_OF_MEMORY, short) if short else _of(Cause.WORKER_CRASH, gone)
    return _of(Cause.WORKER_CRASH, failures)


def _told(failures: Sequence[WorkerFailure]) -> Interruption:
    """Of errors that workers raised themselves."""
    of_store = [each for each in failures if isinstance(each.error, StorageError | SnapshotLostError)]
    # Ours say themselves what is wrong, but for the one that a worker's error of any kind is told to the others as.
    foreign = [each for each in failures if not isinstance(each.error, HeliostatError) or _is_wrapped(each.error)]
    short = [each for each in foreign if _OUT_OF_MEMORY.search(f"{type(each.error).__name__}: {each.error}")]
    broken = [each for each in foreign if _HARDWARE.search(str(each.error))]
    for cause, chosen in ((Cause.STORAGE, of_store), (Cause.OUT_OF_MEMORY, short), (Cause.WORKER_CRASH, broken)):
        if chosen:
            return _of(cause, chosen)
    return _of(Cause.USER_ERROR, failures)


def _is_wrapped(error: BaseException) -> bool:
    return type(error) is TrainingFailedError


def _of(
    cause: Cause, failures: Sequence[WorkerFailure], detail: str = "", ranks: tuple[int, ...] | None = None
) -> Interruption:
    first = min(failures, key=lambda each: each.rank)
    told = not first.is_gone and cause not in (Cause.HANG, Cause.NODE_LOST, Cause.PREEMPTED)
    return Interruption(
        cause,
        tuple(sorted(each.rank for each in failures)) if ranks is None else ranks,
        tuple(sorted({each.node for each in failures})),
        detail or _one_line(first.error),
        first.error if told else None,
        first.traceback,
    )


def _silence(hung: Mapping[int, float]) -> str:
    worst = max(hung.values())
    return f"no movement for {worst:.0f} s on {'worker' if len(hung) == 1 else 'workers'} {', '.join(map(str, hung))}"


def _one_line(error: BaseException) -> str:
    if isinstance(error, HeliostatError):
        return f"{error.code}: {error.fact}"
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def verdict_on(found: Interruption, max_failures: int) -> HeliostatError:
    """The error that tells the user why a run was given up.

    Args:
        found: The last interruption.
        max_failures: That were bearable.
    """
    if isinstance(found.error, HeliostatError):
        error = found.error
    elif found.cause is Cause.USER_ERROR:
        error = TrainingFailedError(
            f"worker {found.ranks[0] if found.ranks else '?'} failed: {found.detail}",
            "Trying again would meet the same error; --debug shows the worker's traceback",
        )
    else:
        error = TrainingFailedError(
            f"{found.cause} interrupted the run {max_failures + 1} times in a row without a new step, the last time: "
            f"{found.detail}",
            "Run the same command again to resume from the last checkpoint; the run's events tell each interruption",
        )
    if found.traceback:
        error.add_note(f"The first worker that failed:\n{found.traceback}")
    return error


UNLIMITED = frozenset({Cause.RESIZE, Cause.PREEMPTED, Cause.NODE_LOST})
"""What spot nodes do; it is no failure of the run."""
_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class Budgets:
    """How often a cause may interrupt a run in a row without one new step between: a run that moves may go on.

    A store that had worked and fails is given time instead: a disk becomes free again, an outage ends.

    Args:
        max_failures: For every cause that counts, user errors excepted, of which none is tried again.
        storage_patience_s: How long the store may fail, once the run has done a step.
    """

    max_failures: int
    storage_patience_s: float
    _spent: dict[Cause, int] = field(default_factory=dict)
    _since: dict[Cause, float] = field(default_factory=dict)
    """When each cause was first charged since the last new step."""
    _furthest: int = -1

    def allows(self, cause: Cause, steps_done: int, now: float) -> bool:
        """Charge an interruption; whether the run may go on.

        Args:
            cause: Of it.
            steps_done: The most that any attempt of the run has done.
            now: Seconds on the monotonic clock.
        """
        if steps_done > self._furthest:
            self._furthest = steps_done
            self._spent.clear()
            self._since.clear()
        if cause in UNLIMITED:
            return True
        if cause is Cause.USER_ERROR:
            return False
        self._spent[cause] = self._spent.get(cause, 0) + 1
        began = self._since.setdefault(cause, now)
        if cause is Cause.STORAGE and steps_done > 0:
            return now - began <= self.storage_patience_s
        return self._spent[cause] <= self.max_failures

    def pause_s(self, cause: Cause) -> float:
        """How long to wait before the next attempt: what fails again and again is not helped by haste."""
        again = self._spent.get(cause, 0) - 1
        return min(2.0 ** min(again - 1, 10), _LONGEST_PAUSE_S) if again > 0 else 0.0
