"""Reading by position without Ray, then the same through Ray Data on a small local Ray."""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest
import ray
import ray.data
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from heliostat.data import executor_pause
from heliostat.data.executor_pause import PauseBetweenTurns
from heliostat.data.manifest import DatasetManifest, Provenance, Shard, load_manifest, write_manifest
from heliostat.data.samples import PinnedDataset, Samples, SampleSource, WorkerShare
from heliostat.data.shards import SCHEMA, upload_shard, write_shard
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import CHUNK_BYTES, CHUNK_SAMPLES, plan_chunks, stream_samples
from heliostat.errors import CorruptShardError, DatasetNotFoundError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store

SHARDS = ((5, 7, 3), (6, 4))
"""Rows of the row groups of each shard."""
ROWS = sum(map(sum, SHARDS))
SLOTS, SLOT_BATCH = 5, 3
GLOBAL_BATCH = SLOTS * SLOT_BATCH
OBJECT_STORE_BYTES = 100 * 2**20
"""Little more than Ray's minimum, so that a stream must live with little."""


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


def write_dataset(root: Store, name: str, folder: Path, first: int) -> PinnedDataset:
    """Shards of generated rows, published."""
    store = dataset_store(root, name)
    shards: list[Shard] = []
    for groups in SHARDS:
        starts = [first + sum(groups[:group]) for group in range(len(groups))]
        path = folder / "local.parquet"
        shards.append(write_shard(path, [table(start, rows) for start, rows in zip(starts, groups, strict=True)]))
        upload_shard(store, shards[-1], path)
        first += sum(groups)
    provenance = Provenance(
        source="generated", created_utc="", heliostat_version="", parent_sha256=None, images_added=1, duplicates=0
    )
    return PinnedDataset(name, write_manifest(root, DatasetManifest(name=name, shards=tuple(shards)), provenance))


def write_source(folder: Path, first: int = 0) -> SampleSource:
    """A mix: the first dataset holds rows 0 to 24, the second rows 100 to 124; or as many from ``first`` on.

    What a process has read it knows by its hash: what is to come from storage must be new to it.
    """
    root = open_store(str(folder / "root"))
    photos = replace(write_dataset(root, "photos", folder, first), share=3)
    drawings = write_dataset(root, "drawings", folder, first + 100)
    return SampleSource(root, (photos, drawings), seed=3, window_groups=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SampleSource:
    return write_source(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    with pytest.MonkeyPatch.context() as quick, DataContext.current(DataContext.get_current().copy()):
        # Nobody trains here: what the executor costs while it waits does not matter. And what a stream sets for all of
        # Ray Data in its process ends with these tests.
        quick.setattr("heliostat.data.executor_pause.AHEAD_S", executor_pause.AWAITED_S)
        yield
    ray.shutdown()


def corrupt(source: SampleSource, group: int) -> str:
    """Flip one byte in the middle of a row group of the first dataset's last shard; the shard's key."""
    pinned = source.datasets[0]
    shard = load_manifest(source.root, pinned.name, pinned.manifest_sha256).shards[-1]
    store = dataset_store(source.root, pinned.name)
    data = bytearray(store.get(shard.key))
    data[(shard.row_groups[group].offset + shard.row_groups[group].end) // 2] ^= 1
    store.put(shard.key, bytes(data))
    return shard.key


def row_at(source: SampleSource, position: int) -> int:
    """The generated row at a position of the run."""
    datasets, rows = source.order.span(position, 1)
    return 100 * int(datasets[0]) + int(rows[0])


# Without Ray


@given(positions=st.lists(st.integers(0, 6 * ROWS), min_size=1, max_size=60))
def test_read__brings_exactly_the_rows_asked_for_in_that_order(source: SampleSource, positions: list[int]) -> None:
    rows = [row_at(source, position) for position in positions]
    found = source.read(positions)
    assert found["position"].to_pylist() == positions
    assert found["id"].to_pylist() == [name_of(row) for row in rows]
    assert found["image"].to_pylist() == [image(row) for row in rows]


def test_read__a_flipped_byte_is_a_corrupt_shard(tmp_path: Path) -> None:
    source = write_source(tmp_path, first=1000)
    key = corrupt(source, group=1)
    with pytest.raises(CorruptShardError, match=re.escape(key)):
        source.read(list(range(4 * ROWS)))


def test_read__sources_of_other_stores_and_manifests_are_not_mixed_up(source: SampleSource, tmp_path: Path) -> None:
    photos, drawings = source.datasets
    alone = SampleSource(source.root, (drawings,), seed=3, window_groups=2)
    source.read(list(range(ROWS)))
    assert set(alone.read(list(range(ROWS)))["id"].to_pylist()) == {name_of(row) for row in range(100, 100 + ROWS)}
    with pytest.raises(DatasetNotFoundError):
        SampleSource(open_store(str(tmp_path)), (photos,), seed=3, window_groups=2).read([0])


def test_read__says_what_it_cost(tmp_path: Path) -> None:
    found = write_source(tmp_path, first=2000).read(list(range(4 * ROWS)))
    read, used = sum(found["bytes_read"].to_pylist()), len(b"".join(found["image"].to_pylist()))
    assert used * 0.2 < read < used * 2  # each row group once, at most; most images four times in two epochs


@given(
    slots=st.integers(1, 64),
    world_size=st.integers(1, 64),
    slot_batch=st.integers(1, 300),
    image_bytes=st.floats(1, 1e9),
    window_rows=st.integers(1, 10**5),
    first_step=st.integers(0, 1000),
    steps=st.integers(1, 2000),
)
def test_plan_chunks__covers_every_step_once_within_its_bounds(
    slots: int, world_size: int, slot_batch: int, image_bytes: float, window_rows: int, first_step: int, steps: int
) -> None:
    share = WorkerShare(SlotPlan(slots, min(slots, world_size)), 0, slot_batch)
    plan = plan_chunks(share, image_bytes, window_rows, first_step, first_step + steps)
    covered = [step for chunk in range(plan.chunks) for step in plan.steps(chunk)]
    assert covered == list(range(first_step, first_step + steps))
    if plan.steps_per_chunk > 1:
        assert plan.steps_per_chunk * share.samples_per_step <= CHUNK_SAMPLES
        assert plan.steps_per_chunk * share.samples_per_step * image_bytes <= CHUNK_BYTES
    # The direct part covers a window of the run, and no more than a chunk besides.
    direct = plan.direct * plan.steps_per_chunk * share.global_batch
    assert window_rows <= direct < window_rows + (plan.steps_per_chunk + 1) * share.global_batch


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

STEPS = 150
"""Several chunks for every worker below, also after those that are read directly."""
TEST_PROCESS = os.getpid()


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
@pytest.mark.parametrize(("world_size", "first_step"), [(1, 0), (3, 0), (5, 30), (1, 61)])
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
        first = step * GLOBAL_BATCH
        rows = [row_at(source, position) for position in range(first, first + GLOBAL_BATCH)]
        assert found == [(position, name_of(row), image(row)) for position, row in enumerate(rows, first)]


@through_ray
def test_stream_samples__a_late_chunk_is_waited_for(source: SampleSource, local_ray: None, tmp_path: Path) -> None:
    share = WorkerShare(SlotPlan(SLOTS, 1), 0, SLOT_BATCH)
    plan = plan_chunks(share, source.image_bytes, source.order.window_rows, 0, STEPS)
    late, later = (plan.steps(chunk)[0] * GLOBAL_BATCH for chunk in (plan.direct, plan.direct + 1))

    class LateStart(SampleSource):
        """The first chunk that Ray Data brings is read after its second."""

        def read(self, positions: Sequence[int]) -> pa.Table:
            deadline = time.monotonic() + 20
            while late in positions and not (tmp_path / "second").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            table = super().read(positions)
            if later in positions:
                (tmp_path / "second").touch()
            time.sleep(0.5 if late in positions else 0)  # until the second has got through Ray
            return table

    (steps,) = streamed(LateStart(source.root, source.datasets, source.seed, source.window_groups), world_size=1)
    assert [position for samples in steps for position in samples.positions] == list(range(STEPS * GLOBAL_BATCH))
    assert (tmp_path / "second").exists()


@through_ray
@pytest.mark.parametrize("direct", [True, False])
def test_stream_samples__an_error_is_the_users_not_rays(source: SampleSource, local_ray: None, direct: bool) -> None:
    class Broken(SampleSource):
        """Everything that is read directly, or everything later, is corrupt."""

        def read(self, positions: Sequence[int]) -> pa.Table:
            if direct == (os.getpid() == TEST_PROCESS):
                raise CorruptShardError("row group 0 of shards/part-0 does not have its hash", "Restore the object")
            return super().read(positions)

    with pytest.raises(CorruptShardError) as caught:
        streamed(Broken(source.root, source.datasets, source.seed, source.window_groups), world_size=1)
    assert str(caught.value) == (
        "HS-DATA-005: row group 0 of shards/part-0 does not have its hash. Restore the object."
    )


@through_ray
def test_stream_samples__the_first_batch_does_not_wait_for_ray_data(source: SampleSource, local_ray: None) -> None:
    class NothingThroughRay(SampleSource):
        """Tasks hang."""

        def read(self, positions: Sequence[int]) -> pa.Table:
            while os.getpid() != TEST_PROCESS and not released.exists():
                time.sleep(0.05)
            return super().read(positions)

    released = Path(tempfile.mkdtemp()) / "released"
    share = WorkerShare(SlotPlan(SLOTS, 1), 0, SLOT_BATCH)
    slow = NothingThroughRay(source.root, source.datasets, source.seed, source.window_groups)
    steps = stream_samples(slow, share, 0, STEPS)
    plan = plan_chunks(share, source.image_bytes, source.order.window_rows, 0, STEPS)
    for step in range(plan.direct * plan.steps_per_chunk):
        assert next(steps).positions == share.positions(step)
    released.touch()
    assert len(list(steps)) == STEPS - plan.direct * plan.steps_per_chunk


@through_ray
def test_stream_samples__goes_on_when_rays_memory_is_smaller_than_what_it_reads_ahead(
    source: SampleSource, local_ray: None
) -> None:
    """Ray Data's bookkeeping of memory once held back the only task that the waiting consumer needed, for ever."""
    image_bytes = 300_000

    class Large(SampleSource):
        """Images of that size."""

        @property
        def image_bytes(self) -> float:
            return image_bytes

        def read(self, positions: Sequence[int]) -> pa.Table:
            table = super().read(positions)
            padded = pa.array([image.ljust(image_bytes) for image in table["image"].to_pylist()], pa.binary())
            return table.set_column(table.schema.get_field_index("image"), "image", padded)

    assert 100 * GLOBAL_BATCH * image_bytes > 4 * OBJECT_STORE_BYTES
    share = WorkerShare(SlotPlan(SLOTS, 1), 0, SLOT_BATCH)
    found: list[list[int]] = []

    def consume() -> None:
        large = Large(source.root, source.datasets, source.seed, source.window_groups)
        with closing(stream_samples(large, share, 0, 100_000)) as steps:  # a run of a usual length has many chunks
            for step, samples in enumerate(islice(steps, 100)):
                found.append(samples.positions)
                time.sleep(2 if step in (30, 60) else 0)  # all that may be read ahead is

    consumer = Thread(target=consume, daemon=True)
    consumer.start()
    consumer.join(timeout=120)
    assert found == [share.positions(step) for step in range(100)]


@through_ray
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
