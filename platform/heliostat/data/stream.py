"""Ray Data carries the encoded images of a worker's slots to it, in the exact order of the run.

Every worker has a pipeline of its own: a list of chunks (consecutive steps), each fetched by one Ray task that computes
by arithmetic which rows it needs, reads their verified row groups, and returns the rows in order. One execution spans
all epochs to the end of the run, because an execution takes seconds to start. Nothing is coordinated between workers,
so nothing has to be when their number changes: the state of the stream is the step.

Ray Data's own ``streaming_split`` cannot be used: it hands out blocks as they come, so which worker gets which sample
depends on timing, and it restarts at sample 0 with every worker group.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from heliostat import errors
from heliostat.data.manifest import DatasetManifest
from heliostat.data.order import SampleOrder
from heliostat.data.shards import read_row_group
from heliostat.data.slots import SlotPlan
from heliostat.errors import HeliostatError, SampleOrderError
from heliostat.storage import Store

_CHUNK_SAMPLES = 512
"""Samples that one task brings to one worker, about."""
_MAX_BLOCKS = 2000
_TASK_CPUS = 0.25
"""Fetching waits for storage most of the time. Whole CPUs would starve the workers, or be starved by them for ever (a
deadlock was seen with actors that held all CPUs)."""
_TASKS_AT_ONCE = 2
_CACHED_ROW_GROUPS = 32
_FAILED = -1
"""Position of a row that holds an error."""


@dataclass(frozen=True)
class Samples:
    """Samples in the order of the run; all three have one entry per sample."""

    positions: list[int]
    ids: list[str]
    images: list[bytes]


@dataclass(frozen=True)
class SampleSource:
    """A pinned dataset and the order in which a run reads it."""

    store: Store
    """The dataset's store, ``<root>/datasets/<name>``."""
    manifest: DatasetManifest
    order: SampleOrder

    def read(self, positions: list[int]) -> pa.Table:
        """Rows ``id``, ``image``, ``position`` at the given positions of the run, in that order."""
        # One call for the whole span: each one permutes the row groups of an epoch anew.
        first = min(positions)
        rows = self.order.positions(first, max(positions) - first + 1)[np.subtract(positions, first)]
        places = [self.order.locate(row) for row in rows.tolist()]
        picked: list[pa.Table] = []
        taken: list[int] = []
        for group in sorted({group for group, _ in places}):
            wanted = [index for index, (other, _) in enumerate(places) if other == group]
            picked.append(_row_group(self, group).take([places[index][1] for index in wanted]))
            taken.extend(wanted)
        table = pa.concat_tables(picked).take(np.argsort(taken))
        return table.append_column("position", pa.array(positions, pa.int64()))

    def __hash__(self) -> int:
        return hash((self.store.url, self.order.manifest_hash))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SampleSource) and (self.store.url, self.order.manifest_hash) == (
            other.store.url,
            other.order.manifest_hash,
        )


@lru_cache(maxsize=_CACHED_ROW_GROUPS)
def _row_group(source: SampleSource, group: int) -> pa.Table:
    """A verified row group; neighbouring chunks need the same ones, and Ray keeps its worker processes."""
    for index, shard in enumerate(source.manifest.shards):
        if group < len(shard.row_groups):
            return read_row_group(source.store, source.manifest, index, group).select(["id", "image"])
        group -= len(shard.row_groups)
    raise IndexError(f"the manifest has no row group {group} more")


@dataclass(frozen=True)
class WorkerShare:
    """Which positions one worker consumes in which step."""

    slots: SlotPlan
    rank: int
    slot_batch: int

    @property
    def samples_per_step(self) -> int:
        """Samples that the worker consumes in a step."""
        return len(self.slots.slots_of(self.rank)) * self.slot_batch

    def positions(self, step: int) -> list[int]:
        """Positions of the worker's samples of a step: its slots in order."""
        start = step * self.slots.slots * self.slot_batch
        return [
            start + slot * self.slot_batch + index
            for slot in self.slots.slots_of(self.rank)
            for index in range(self.slot_batch)
        ]


def stream_samples(source: SampleSource, share: WorkerShare, first_step: int, steps: int) -> Iterator[Samples]:
    """The worker's samples of each step from ``first_step`` to ``steps``, by Ray Data; needs an initialised Ray."""
    import ray.data

    from heliostat.data.executor_pause import PauseBetweenTurns

    left = steps - first_step
    if left <= 0:
        return
    steps_per_chunk = max(1, _CHUNK_SAMPLES // share.samples_per_step)
    chunks = math.ceil(left / steps_per_chunk)

    def fetch(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for chunk in batch["id"].tolist():
            start = first_step + chunk * steps_per_chunk
            stop = min(start + steps_per_chunk, steps)
            try:
                yield source.read([position for step in range(start, stop) for position in share.positions(step)])
            except HeliostatError as error:
                yield _failure(error)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [PauseBetweenTurns]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.range(chunks, override_num_blocks=min(chunks, _MAX_BLOCKS)).map_batches(
        fetch, batch_size=1, num_cpus=_TASK_CPUS, compute=ray.data.TaskPoolStrategy(min(chunks, _TASKS_AT_ONCE))
    )
    batches = dataset.iter_batches(
        batch_size=share.samples_per_step, batch_format="pyarrow", prefetch_batches=2, drop_last=False
    )
    for step, table in enumerate(batches, first_step):
        positions = table["position"].to_pylist()
        if _FAILED in positions:
            raise _raised(table["image"][positions.index(_FAILED)].as_py())
        if positions != share.positions(step):
            raise SampleOrderError(
                f"step {step} of worker {share.rank} got samples from position {positions[:1]} on, not from "
                f"{share.positions(step)[:1]}",
                "Nothing was trained on them; run the same command again to resume, and report this",
            )
        yield Samples(positions, table["id"].to_pylist(), table["image"].to_pylist())


def _failure(error: HeliostatError) -> pa.Table:
    """An error as a row: Ray Data keeps only the text of what a task raises, and the user needs the error itself."""
    text = json.dumps([type(error).__name__, error.fact, error.next_step]).encode()
    return pa.table({"id": [""], "image": pa.array([text], pa.binary()), "position": [_FAILED]})


def _raised(text: bytes) -> HeliostatError:
    name, fact, next_step = json.loads(text)
    error: HeliostatError = getattr(errors, name)(fact, next_step)
    return error
