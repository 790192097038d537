"""Work over many items as Ray Data tasks: a task takes bytes and gives bytes.

There are as many tasks at once as the cluster has CPUs, each taking half a one: what runs beside them always finds CPUs
of its own. Tasks may end in any order; a result comes with the index of what it belongs to. What takes long to make, as
a network does, is made once per process of an ``ActorPool``.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from heliostat import errors
from heliostat.errors import HeliostatError, StoreFailedError

_TASK_CPUS = 0.5
_RESULT = pa.schema(
    [
        ("index", pa.int64()),
        ("result", pa.large_binary()),
        ("failure", pa.list_(pa.string())),  # class and texts of an error: Ray keeps no causes
    ]
)

Task = Callable[[bytes], bytes]


def cluster_cpus() -> int:
    """CPUs of the cluster that this process belongs to, one at least."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@dataclass(frozen=True, slots=True)
class ActorPool:
    """Processes that make their task once and keep it.

    Attributes:
        make: Makes the task, in each of them.
        gpus: Of each; without any there are as many processes as CPUs, else as GPUs, in both cases of the cluster.
    """

    make: Callable[[], Task]
    gpus: float = 0.0

    def size(self, resources: Mapping[str, float], items: int) -> int:
        """Processes on a cluster with these resources, for so many items."""
        there = resources.get("GPU", 0.0) / self.gpus if self.gpus else resources.get("CPU", 1.0)
        return max(1, min(items, int(there)))


def run_tasks(payloads: Iterable[tuple[int, bytes]], task: Task | ActorPool) -> Iterator[tuple[int, bytes]]:
    """One Ray Data task per payload; indices and results as they come.

    Raises:
        HeliostatError: the first one that a task raised.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("tasks need an initialised Ray")  # a bare start would join any cluster on this machine
    import ray.data

    with _quiet():
        # One by one into Ray's own memory: together they are as large as a round.
        blocks = [
            ray.put(pa.table({"index": [index], "payload": pa.array([data], pa.large_binary())}))
            for index, data in payloads
        ]
        if not blocks:
            return
        dataset = ray.data.from_arrow_refs(blocks)
        dataset.context.enable_progress_bars = False
        results = dataset.map_batches(
            _Kept if isinstance(task, ActorPool) else partial(_run_block, task=task),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
            **_compute(task, len(blocks)),
        )
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from _results(block)


def _compute(task: Task | ActorPool, items: int) -> dict[str, Any]:
    import ray

    if isinstance(task, ActorPool):
        size = task.size(ray.cluster_resources(), items)
        chosen = {"compute": ray.data.ActorPoolStrategy(size=size), "fn_constructor_args": (task.make,)}
        return {**chosen, "num_gpus": task.gpus} if task.gpus else chosen
    return {"compute": ray.data.TaskPoolStrategy(size=min(items, cluster_cpus()))}


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data announces every execution; the caller has a progress callback."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Kept:
    def __init__(self, make: Callable[[], Task]) -> None:
        self._make = make
        self._made: Task | None = None

    def _task(self, payload: bytes) -> bytes:
        if self._made is None:  # not before: an error of an actor's constructor reaches nobody as what it is
            self._made = self._make()
        return self._made(payload)

    def __call__(self, block: pa.Table) -> pa.Table:
        return _run_block(block, self._task)


def _run_block(block: pa.Table, task: Task) -> pa.Table:
    rows = zip(block["index"].to_pylist(), block["payload"].to_pylist(), strict=True)
    return pa.Table.from_pylist([_run_one(index, payload, task) for index, payload in rows], _RESULT)


def _run_one(index: int, payload: bytes, task: Task) -> dict[str, object]:
    try:
        return {"index": index, "result": task(payload), "failure": None}
    except HeliostatError as error:
        failure = [_kind_of(error), error.fact, error.next_step]
    except OSError as error:  # sources answer for theirs: this is the disk on which a task assembles what it uploads
        fact = f"a task cannot work in {tempfile.gettempdir()}: {error.strerror or type(error).__name__}"
        failure = [StoreFailedError.__name__, fact, "Free space there, or point TMPDIR to another disk"]
    return {"index": index, "result": None, "failure": failure}


def _kind_of(error: HeliostatError) -> str:
    """The class of ours that it is of: Ray, and plug-ins, derive classes of their own."""
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__)


def _results(block: pa.Table) -> Iterator[tuple[int, bytes]]:
    for row in block.to_pylist():
        if row["failure"]:
            kind, fact, next_step = row["failure"]
            raise getattr(errors, kind)(fact, next_step)
        yield row["index"], row["result"]
