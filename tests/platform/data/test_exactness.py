"""The promise of the data plane: the same images, the same pixels, in the same steps, whatever happens meanwhile.

What a run consumed is held against what was stored, and its pixels against those that this process makes of the stored
files by itself: over random schedules of worker counts and stops, through Ray Data from a real S3 server with live
resizes, through a proxy that harms a third of the answers, and while the dataset grows.
"""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data import DataContext
from support.fault_proxy import Chances, FaultProxy, Kind, Rule
from support.seaweedfs import BUCKET, s3_environment
from support.small_datasets import store_dataset
from support.worlds import tiny_recipe

from heliostat.data import executor_pause
from heliostat.data import samples as samples_module
from heliostat.data.crops import slot_crops
from heliostat.data.ingest import IngestOptions, ingest
from heliostat.data.manifest import load_manifest
from heliostat.data.samples import PinnedDataset, Samples, SampleSource, WorkerShare
from heliostat.data.shards import ShardLayout
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import plan_chunks, stream_samples
from heliostat.storage import Store, open_store
from heliostat.training.ledger import EMPTY, next_digest, planned_digest, slot_digest
from heliostat_cluster.local import local_ray as start_ray

SLOTS, SLOT_BATCH = 5, 3
GLOBAL_BATCH = SLOTS * SLOT_BATCH
STEPS = 24
TRAINING = tiny_recipe(steps=STEPS, global_batch=GLOBAL_BATCH, slot_batch=SLOT_BATCH).training
SEED = 3
AUGMENTATION = tiny_recipe().augmentation

Step = list[Samples]
"""The slots of a step, in order."""


@dataclass(frozen=True)
class Stretch:
    """Part of a run between two changes: so many workers go on to a step, of which the last ``lost`` are not kept."""

    workers: int
    until: int
    lost: int = 0


@dataclass(frozen=True)
class Mix:
    """A source, and by itself what it is made of."""

    source: SampleSource
    files: dict[str, bytes]
    """By id."""
    datasets: list[list[str]]
    """The ids of each dataset in the order of its rows."""

    def plain_ids(self) -> list[list[str]]:
        """The ids of each step, by the arithmetic of the order alone."""
        datasets, rows = self.source.order.span(0, STEPS * GLOBAL_BATCH)
        ids = [self.datasets[dataset][row] for dataset, row in zip(datasets, rows, strict=True)]
        return [ids[start : start + GLOBAL_BATCH] for start in range(0, len(ids), GLOBAL_BATCH)]

    def plain_pixels(self) -> list[list[str]]:
        """The sha1 of each slot of each step, made here from the files."""
        return [
            [
                pixels(Samples(list(range(start, start + SLOT_BATCH)), part, [self.files[name] for name in part]))
                for start, part in zip(
                    range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH, SLOT_BATCH),
                    (ids[index : index + SLOT_BATCH] for index in range(0, GLOBAL_BATCH, SLOT_BATCH)),
                    strict=True,
                )
            ]
            for step, ids in enumerate(self.plain_ids())
        ]


def png_files(count: int, seed: int) -> dict[str, bytes]:
    """Small images of smooth noise by id. What a process has read it knows by hash: each test has images of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    large = [cv2.resize(image, (30, 24), interpolation=cv2.INTER_CUBIC) for image in coarse]
    files = [cv2.imencode(".png", image)[1].tobytes() for image in large]
    return {hashlib.sha256(data).hexdigest(): data for data in files}


def store_mix(root: Store, seed: int, photos: int, drawings: int) -> Mix:
    """Two datasets, three samples of the first to one of the second."""
    parts = {"photos": png_files(photos, seed), "drawings": png_files(drawings, seed + 1)}
    pinned = tuple(
        PinnedDataset(name, store_dataset(root, list(parts[name].values()), name).sha256, share)
        for name, share in (("photos", 3), ("drawings", 1))
    )
    source = SampleSource(root, pinned, SEED, window_groups=2)
    return Mix(source, parts["photos"] | parts["drawings"], [sorted(files) for files in parts.values()])


def pixels(slot: Samples) -> str:
    crops = slot_crops(AUGMENTATION, SEED, slot.positions, slot.images)
    return hashlib.sha1(crops.global_crops.tobytes() + crops.local_crops.tobytes()).hexdigest()


def in_slots(by_rank: Sequence[Samples]) -> Step:
    """A step of all workers, slot by slot."""
    return [
        by_rank[slot % len(by_rank)].part(turn * SLOT_BATCH, (turn + 1) * SLOT_BATCH)
        for slot in range(SLOTS)
        for turn in [slot // len(by_rank)]
    ]


def assert_nothing_lost_or_repeated(ledger: Sequence[str], datasets: Sequence[Sequence[str]]) -> None:
    """The consumed ids in order, split by dataset: every epoch holds each of its images once."""
    assert set(ledger) <= {name for ids in datasets for name in ids}
    for ids in datasets:
        mine = [name for name in ledger if name in set(ids)]
        for start in range(0, len(mine), len(ids)):
            epoch = mine[start : start + len(ids)]
            lost = len(set(ids) - set(epoch)) if len(epoch) == len(ids) else 0
            repeated = sum(count - 1 for count in Counter(epoch).values())
            assert (lost, repeated) == (0, 0), f"in the epoch from sample {start} on"


# Without Ray: the chunks of each worker, read one after the other


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mix:
    return store_mix(open_store(str(tmp_path_factory.mktemp("mix"))), seed=0, photos=25, drawings=10)


def read_plainly(source: SampleSource, workers: int, first_step: int, until: int) -> Iterator[Step]:
    """What ``stream_samples`` brings to all workers, without Ray Data."""
    ranks = []
    for rank in range(workers):
        share = WorkerShare(SlotPlan(SLOTS, workers), rank, SLOT_BATCH)
        plan = plan_chunks(share, source.image_bytes, source.order.window_rows, first_step, STEPS)
        steps: list[Samples] = []
        for chunk in range(plan.chunks):
            if plan.steps(chunk)[0] < until:
                positions = [position for step in plan.steps(chunk) for position in share.positions(step)]
                table = source.read(positions)
                columns = (table[name].to_pylist() for name in ("position", "id", "image"))
                whole, size = Samples(*columns), share.samples_per_step
                steps += [whole.part(start, start + size) for start in range(0, len(positions), size)]
        ranks.append(steps[: until - first_step])
    yield from (in_slots(step) for step in zip(*ranks, strict=True))


def schedules() -> st.SearchStrategy[list[Stretch]]:
    """Stretches that end with the run's last step; from each stop on some steps may have to be computed again."""

    def to_stretches(parts: list[tuple[int, int, int]], last_workers: int) -> list[Stretch]:
        stretches, done = [], 0
        for workers, steps, lost in parts:
            until = min(done + steps, STEPS - 1)
            stretches.append(Stretch(workers, until, min(lost, until - done)))
            done = until - stretches[-1].lost
        return [*stretches, Stretch(last_workers, STEPS)]

    part = st.tuples(st.integers(1, SLOTS), st.integers(1, 9), st.sampled_from([0, 0, 1, 3, 9]))
    return st.builds(to_stretches, st.lists(part, max_size=5), st.integers(1, SLOTS))


@settings(max_examples=25)
@given(schedule=schedules(), chunk_samples=st.sampled_from([1, 20, 100, 512]))
def test_ledger__of_any_schedule_has_nothing_lost_nothing_repeated_and_one_order(
    mix: Mix, schedule: list[Stretch], chunk_samples: int
) -> None:
    kept: list[list[str]] = []
    digest = EMPTY
    with patch("heliostat.data.stream.CHUNK_SAMPLES", chunk_samples):
        for stretch in schedule:
            steps = list(read_plainly(mix.source, stretch.workers, len(kept), stretch.until))
            for step in steps[: len(steps) - stretch.lost]:
                kept.append([name for slot in step for name in slot.ids])
                digest = next_digest(digest, (slot_digest(slot.ids) for slot in step))
    assert len(kept) == STEPS
    assert_nothing_lost_or_repeated(list(itertools.chain(*kept)), mix.datasets)
    assert kept == mix.plain_ids()
    slots = [[ids[start : start + SLOT_BATCH] for start in range(0, GLOBAL_BATCH, SLOT_BATCH)] for ids in kept]
    expected = EMPTY
    for step_slots in slots:
        expected = next_digest(expected, map(slot_digest, step_slots))
    assert digest == expected
    assert digest.hex() == planned_digest(mix.source, TRAINING)


@pytest.mark.parametrize("plant", ["lost", "repeated", "swapped epochs"])
def test_replay__finds_what_was_planted(mix: Mix, plant: str) -> None:
    ledger = list(itertools.chain(*mix.plain_ids()))
    assert_nothing_lost_or_repeated(ledger, mix.datasets)
    first = ledger.index(mix.datasets[0][0])
    second = ledger.index(mix.datasets[0][1])
    if plant == "lost":
        del ledger[first]
    elif plant == "repeated":
        ledger.insert(second, mix.datasets[0][0])
    else:
        ledger[first] = mix.datasets[0][1]
    with pytest.raises(AssertionError, match="in the epoch"):
        assert_nothing_lost_or_repeated(ledger, mix.datasets)


# Through Ray Data, from S3 behind a proxy: one start of Ray serves all


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    """In front of the server for this process and for those of a Ray, which inherit the environment it starts in."""
    with FaultProxy(s3_server).running() as proxy, pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        for name, value in s3_environment(proxy.endpoint).items():
            environment.setenv(name, value)
        # Chunks of one to five steps: all but the first come through Ray Data.
        environment.setattr("heliostat.data.stream.CHUNK_SAMPLES", GLOBAL_BATCH)
        # Nobody trains here: what the executor costs while it waits does not matter.
        environment.setattr("heliostat.data.executor_pause.AHEAD_S", executor_pause.AWAITED_S)
        # Streams set what holds for all of Ray Data in their process; the ingests of other tests are none of theirs.
        with start_ray(num_cpus=2), DataContext.current(DataContext.get_current().copy()):
            yield proxy


@pytest.fixture
def root(proxy: FaultProxy) -> Store:
    proxy.plan()
    return open_store(f"s3://{BUCKET}/{uuid4().hex}")


def on_s3(test: Callable[..., None]) -> Callable[..., None]:
    marked: Callable[..., None] = pytest.mark.s3(
        pytest.mark.ray(pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")(test))
    )
    return marked


def streamed(source: SampleSource, schedule: Sequence[Stretch]) -> list[Step]:
    """The steps of a run; at the end of a stretch the streams of its workers are cut off where they are."""
    steps: list[Step] = []
    for stretch in schedule:
        by_rank = []
        for rank in range(stretch.workers):
            share = WorkerShare(SlotPlan(SLOTS, stretch.workers), rank, SLOT_BATCH)
            stream = stream_samples(source, share, len(steps), STEPS)
            by_rank.append(list(itertools.islice(stream, stretch.until - len(steps))))
        steps += [in_slots(step) for step in zip(*by_rank, strict=True)]
    return steps


def assert_exact(steps: Sequence[Step], mix: Mix) -> None:
    """Pixels and ids are those of a run that nothing happened to."""
    assert [[pixels(slot) for slot in step] for step in steps] == mix.plain_pixels()
    assert_nothing_lost_or_repeated([name for step in steps for slot in step for name in slot.ids], mix.datasets)


@on_s3
@pytest.mark.parametrize(
    "schedule",
    [[Stretch(1, STEPS)], [Stretch(3, 9), Stretch(5, 17), Stretch(1, STEPS)]],
    ids=["one worker", "three, then five, then one"],
)
def test_pixels__are_the_same_at_any_worker_count_and_over_live_resizes(root: Store, schedule: list[Stretch]) -> None:
    mix = store_mix(root, seed=100 * len(schedule), photos=40, drawings=16)
    assert_exact(streamed(mix.source, schedule), mix)


REFUSALS: list[Kind] = ["500", "503", "slow_down", "expired", "lost_answer"]
BODIES: list[Kind] = ["cut_body", "long_length", "short_length"]
HARM: dict[Kind, float] = {**dict.fromkeys(REFUSALS + BODIES, 0.04), "latency": 0.02}


def flips(source: SampleSource) -> list[Rule]:
    """A flipped bit in the first two reads of every object: a third one of the same bytes would be called corrupt."""
    manifests = [load_manifest(source.root, pinned.name, pinned.manifest_sha256) for pinned in source.datasets]
    shards = [shard for manifest in manifests for shard in manifest.shards]
    keys = [key for shard in shards for key in (shard.key, shard.index_key)]
    return [Rule("flip", "GET", contains=key, times=2, amount=99) for key in keys]


@on_s3
def test_pixels__are_the_same_in_bad_weather_and_retries_are_counted(proxy: FaultProxy, root: Store) -> None:
    mix = store_mix(root, seed=500, photos=40, drawings=16)
    proxy.plan(*flips(mix.source), chances=Chances(seed=1, of=HARM, method="GET", contains="/shards/"))
    before = Counter(proxy.faults)
    steps = streamed(mix.source, [Stretch(3, 9), Stretch(1, STEPS)])
    faults = Counter(proxy.faults) - before
    proxy.plan()
    assert_exact(steps, mix)
    assert len(faults) >= 5, faults
    assert faults["flip"] == 2 * len(flips(mix.source))
    # What was read ahead when the streams were cut off is in none of the samples.
    retries = sum(slot.retries for step in steps for slot in step)
    assert retries > 0


@on_s3
def test_read__every_flipped_byte_is_noticed_and_every_retry_counted(
    proxy: FaultProxy, root: Store, quick_retries: None
) -> None:
    mix = store_mix(root, seed=600, photos=40, drawings=16)
    assert mix.source.order  # the manifests are read, which costs no sample anything
    proxy.plan(*flips(mix.source), chances=Chances(seed=2, of={"slow_down": 0.2, "cut_body": 0.2}))
    before = Counter(proxy.faults)
    found = mix.source.read(range(STEPS * GLOBAL_BATCH))
    faults = Counter(proxy.faults) - before
    assert found["image"].to_pylist() == [mix.files[name] for ids in mix.plain_ids() for name in ids]
    assert faults["flip"] == 2 * len(flips(mix.source))
    assert min(faults["slow_down"], faults["cut_body"]) > 0
    assert sum(found["retries"].to_pylist()) == faults.total()


@on_s3
def test_ingest__into_a_dataset_that_a_run_reads_changes_nothing_for_the_run(root: Store, tmp_path: Path) -> None:
    files, options = png_files(50, seed=700), IngestOptions(layout=ShardLayout(group_rows=4, shard_groups=3))
    first, later = tmp_path / "first", tmp_path / "later"
    for number, (name, data) in enumerate(files.items()):
        folder = first if number < 30 else later
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(data)
    pinned = PinnedDataset("photos", ingest(first, root, "photos", options).manifest_sha256)
    mix = Mix(SampleSource(root, (pinned,), SEED, window_groups=2), files, [sorted(list(files)[:30])])
    share = WorkerShare(SlotPlan(SLOTS, 1), 0, SLOT_BATCH)
    stream = stream_samples(mix.source, share, 0, STEPS)
    begun = [in_slots([next(stream)]) for _ in range(3)]
    grown = ingest(later, root, "photos", options)
    steps = begun + [in_slots([samples]) for samples in stream]
    assert_exact(steps, mix)
    # A resumed run opens the dataset anew; a new run takes what there is now.
    samples_module._opened.cache_clear()
    resumed = [in_slots([samples]) for samples in stream_samples(mix.source, share, len(begun), STEPS)]
    assert_exact(begun + resumed, mix)
    assert (load_manifest(root, "photos").sha256, grown.dataset_images) == (grown.manifest_sha256, 50)
    assert grown.manifest_sha256 != pinned.manifest_sha256
    new_order = SampleSource(root, (replace(pinned, manifest_sha256=grown.manifest_sha256),), SEED, window_groups=2)
    assert set(new_order.read(range(50))["id"].to_pylist()) == set(files)
