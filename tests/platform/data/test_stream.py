"""Reading by position without Ray, then the same through Ray Data on a small local Ray."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from hypothesis import given
from hypothesis import strategies as st
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from heliostat.data.executor_pause import PauseBetweenTurns
from heliostat.data.manifest import DatasetManifest, Shard
from heliostat.data.order import SampleOrder
from heliostat.data.shards import SCHEMA, upload_shard, write_shard
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import Samples, SampleSource, WorkerShare, stream_samples
from heliostat.errors import CorruptShardError
from heliostat.storage import open_store

SHARDS = ((5, 7, 3), (6, 4))
"""Rows of the row groups of each shard."""
ROWS = sum(map(sum, SHARDS))
SLOTS, SLOT_BATCH = 4, 3
GLOBAL_BATCH = SLOTS * SLOT_BATCH


def image(row: int) -> bytes:
    return f"image {row} ".encode() * (row + 1)


def name_of(row: int) -> str:
    return hashlib.sha256(image(row)).hexdigest()


def table(first: int, rows: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": name_of(row), "image": image(row), "width": 1, "height": 1, "source": f"{row}.png", "label": None}
            for row in range(first, first + rows)
        ],
        SCHEMA,
    )


def write_source(folder: Path) -> SampleSource:
    store = open_store(str(folder / "store"))
    shards: list[Shard] = []
    first = 0
    for groups in SHARDS:
        starts = [first + sum(groups[:group]) for group in range(len(groups))]
        path = folder / "local.parquet"
        shards.append(write_shard(path, [table(start, rows) for start, rows in zip(starts, groups, strict=True)]))
        upload_shard(store, shards[-1], path)
        first += sum(groups)
    manifest = DatasetManifest(name="d", shards=tuple(shards))
    group_rows = tuple(rows for groups in SHARDS for rows in groups)
    return SampleSource(store, manifest, SampleOrder(manifest.sha256, 3, group_rows, window_groups=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SampleSource:
    return write_source(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def corrupt(source: SampleSource, group: int) -> None:
    """Flip one byte in the middle of a row group of the last shard."""
    shard = source.manifest.shards[-1]
    data = bytearray(source.store.get(shard.key))
    data[(shard.row_groups[group].offset + shard.row_groups[group].end) // 2] ^= 1
    source.store.put(shard.key, bytes(data))


# Without Ray


@given(positions=st.lists(st.integers(0, 6 * ROWS), min_size=1, max_size=60))
def test_read__brings_exactly_the_rows_asked_for_in_that_order(source: SampleSource, positions: list[int]) -> None:
    rows = [int(source.order.positions(position, 1)[0]) for position in positions]
    found = source.read(positions)
    assert found["position"].to_pylist() == positions
    assert found["id"].to_pylist() == [name_of(row) for row in rows]
    assert found["image"].to_pylist() == [image(row) for row in rows]


def test_read__a_flipped_byte_is_a_corrupt_shard(tmp_path: Path) -> None:
    source = write_source(tmp_path)
    corrupt(source, group=1)
    with pytest.raises(CorruptShardError, match="row group 1 of shards/part-"):
        source.read(list(range(ROWS)))


def test_read__sources_of_other_stores_and_manifests_are_not_mixed_up(source: SampleSource, tmp_path: Path) -> None:
    other = write_source(tmp_path)
    smaller = SampleSource(
        source.store,
        DatasetManifest(name="d", shards=source.manifest.shards[1:]),
        SampleOrder("1" * 64, 3, SHARDS[1]),
    )
    assert len({source, other, smaller}) == 3
    source.read(list(range(ROWS)))
    assert set(smaller.read(list(range(10)))["id"].to_pylist()) == {name_of(row) for row in range(15, 25)}


@given(slots=st.integers(1, 20), slot_batch=st.integers(1, 5), step=st.integers(0, 10**6), data=st.data())
def test_worker_share__all_workers_together_consume_a_step_once(
    slots: int, slot_batch: int, step: int, data: st.DataObject
) -> None:
    plan = SlotPlan(slots, data.draw(st.integers(1, slots)))
    shares = [WorkerShare(plan, rank, slot_batch) for rank in range(plan.world_size)]
    for share in shares:
        positions = share.positions(step)
        assert len(positions) == share.samples_per_step
        for turn, slot in enumerate(plan.slots_of(share.rank)):
            first = (step * slots + slot) * slot_batch
            assert positions[turn * slot_batch : (turn + 1) * slot_batch] == list(range(first, first + slot_batch))
    union = sorted(position for share in shares for position in share.positions(step))
    assert union == list(range(step * slots * slot_batch, (step + 1) * slots * slot_batch))


def test_stream_samples__of_a_finished_run_is_empty(source: SampleSource) -> None:
    share = WorkerShare(SlotPlan(SLOTS, 1), 0, SLOT_BATCH)
    assert list(stream_samples(source, share, first_step=7, steps=7)) == []


# Through Ray Data

STEPS = 100
"""Several chunks for every worker below."""


def through_ray(test: Callable[..., None]) -> Callable[..., None]:
    marked: Callable[..., None] = pytest.mark.ray(
        pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")(test)
    )
    return marked


def streamed(source: SampleSource, world_size: int, first_step: int = 0) -> list[list[Samples]]:
    """What each worker gets, step by step."""
    plan = SlotPlan(SLOTS, world_size)
    shares = [WorkerShare(plan, rank, SLOT_BATCH) for rank in range(world_size)]
    return [list(stream_samples(source, share, first_step, STEPS)) for share in shares]


@through_ray
@pytest.mark.parametrize(("world_size", "first_step"), [(1, 0), (3, 0), (1, 61)])
def test_stream_samples__workers_together_get_every_step_in_the_order_of_the_run(
    source: SampleSource, local_ray: None, world_size: int, first_step: int
) -> None:
    by_rank = streamed(source, world_size, first_step)
    assert [len(steps) for steps in by_rank] == [STEPS - first_step] * world_size
    for rank, steps in enumerate(by_rank):
        share = WorkerShare(SlotPlan(SLOTS, world_size), rank, SLOT_BATCH)
        assert [samples.positions for samples in steps] == [share.positions(step) for step in range(first_step, STEPS)]
    for step, parts in enumerate(zip(*by_rank, strict=True), first_step):
        found = sorted(
            (position, name, data)
            for part in parts
            for position, name, data in zip(part.positions, part.ids, part.images, strict=True)
        )
        rows = source.order.step(step, GLOBAL_BATCH).tolist()
        assert found == [(position, name_of(row), image(row)) for position, row in enumerate(rows, step * GLOBAL_BATCH)]


@through_ray
def test_stream_samples__a_late_chunk_is_waited_for(source: SampleSource, local_ray: None, tmp_path: Path) -> None:
    class LateStart(SampleSource):
        """The first chunk is read after the second."""

        def read(self, positions: list[int]) -> pa.Table:
            deadline = time.monotonic() + 20
            while 0 in positions and not (tmp_path / "second").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            table = super().read(positions)
            (tmp_path / "second").touch()
            time.sleep(0.5 if 0 in positions else 0)  # until the second has got through Ray
            return table

    (steps,) = streamed(LateStart(source.store, source.manifest, source.order), world_size=1)
    assert [position for samples in steps for position in samples.positions] == list(range(STEPS * GLOBAL_BATCH))


@through_ray
def test_stream_samples__a_corrupt_row_group_is_the_users_error_not_rays(tmp_path: Path, local_ray: None) -> None:
    source = write_source(tmp_path)
    corrupt(source, group=0)
    with pytest.raises(CorruptShardError) as caught:
        streamed(source, world_size=1)
    shard = source.manifest.shards[-1].key
    assert str(caught.value).startswith(f"HS-DATA-005: row group 0 of {shard} under ")
    assert "Restore the object from a backup" in caught.value.next_step


def test_pause__is_called_in_every_turn_of_rays_executor(local_ray: None) -> None:
    """Ray's own hook, which a new version may drop: without it waiting costs a core (``executor_pause.py``)."""
    turns = []

    class Counting(PauseBetweenTurns):
        def on_execution_step(self, executor: StreamingExecutor) -> None:
            super().on_execution_step(executor)
            turns.append(executor)

    context = ray.data.DataContext.get_current()
    before = context.custom_execution_callback_classes
    context.custom_execution_callback_classes = [Counting]
    try:
        assert len(list(ray.data.range(8, override_num_blocks=4).iter_batches(batch_size=2))) == 4
    finally:
        context.custom_execution_callback_classes = before
    assert turns
