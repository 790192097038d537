"""The product's own path from a dataset to what a training step takes, on a Ray of its own, as a peer."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from heliostat.data.reading import GROUPS_MAX_BYTES, INDEXES_MAX_BYTES
from heliostat.data.samples import Samples, SampleSource, WorkerShare
from heliostat.data.stream import _CHUNKS_AHEAD, CHUNK_BYTES, CHUNK_SAMPLES, stream_samples
from heliostat.storage import open_store
from heliostat.storage.in_flight import THREADS
from heliostat.training.feed import _STEPS_AHEAD, Feed
from heliostat_cluster.local import local_ray
from process_tree import cpu_spent, tree_use
from read_costs import epoch_steps, share_of, source_of
from stream_peers import SLOT_BATCH, SLOTS, Peer, Setup

_SAMPLE_S = 0.25
_BYTES_PER_MIB = 2**20


def _samples_from(source: SampleSource, share: WorkerShare, steps: int, first_step: int) -> Iterator[Samples]:
    return stream_samples(source, share, first_step, steps)


class RayPeer(Peer):
    """Its process is that of a worker; see ``stream_peers.Peer``."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._recipe, self._source = setup.recipe, setup.source
        self._open = ExitStack()
        super().__init__(self._steps())

    def __enter__(self) -> Self:
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # it would report what a feeder leaves undone when it is ended
        self._open.enter_context(local_ray(os.cpu_count() or 1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._open.close()

    def idle(self, seconds: float) -> dict[str, float]:
        """CPU seconds per second, by kind of process, while the worker takes nothing."""
        before = tree_use()
        time.sleep(seconds)
        return {kind: spent / seconds for kind, spent in cpu_spent(before, tree_use()).items()}

    def memory(self, images: int, paused_s: float) -> dict[str, float]:
        """Peaks in MiB while so many images are made and then none is taken: of a process's own, and Ray's objects."""
        peaks = {"feeder": 0.0, "data_tasks": 0.0, "objects": 0.0}
        stopping = Event()

        def look() -> None:
            while not stopping.wait(_SAMPLE_S):
                found = list(tree_use().values())
                for kind in ("feeder", "data_tasks"):
                    peaks[kind] = max([peaks[kind], *(use.own_mib for use in found if use.kind == kind)])
                peaks["objects"] = max(peaks["objects"], _objects_mib())

        watching = Thread(target=look)
        watching.start()
        self._take(images)
        time.sleep(paused_s)
        stopping.set()
        watching.join()
        return peaks

    def stop(self) -> bool:
        """End the stream: what follows starts its own."""
        self._made.close()  # type: ignore[attr-defined]
        return True

    def first_batch(self, at: float) -> float:
        """Seconds from asking for a resume at this share of an epoch until its first step is there."""
        rows = self._source.order.orders[0].rows
        started_s = time.monotonic()
        feed = self._feed(round(at * rows / (SLOTS * SLOT_BATCH)))
        feed.take()
        seconds = time.monotonic() - started_s
        feed.close()
        return seconds

    def epoch(self, root: str, name: str) -> list[int]:
        """Bytes read and bytes used of an epoch of a dataset of ``read_costs.py`` through Ray Data, by one worker."""
        source, share = source_of(open_store(root), name), share_of(1, 0)
        read = used = 0
        for samples in stream_samples(source, share, 0, epoch_steps(source, share)):
            read, used = read + samples.bytes_read, used + sum(map(len, samples.images))
        return [read, used]

    def _steps(self) -> Iterator[int]:
        feed = self._feed(0)
        try:
            while True:
                yield sum(len(slot.ids) for slot in feed.take().slots)
        finally:
            feed.close()

    def _feed(self, first_step: int) -> Feed:
        share = WorkerShare(self._setup.plan, 0, SLOT_BATCH)
        stream = partial(_samples_from, self._source, share, self._recipe.training.steps)
        return Feed(self._recipe, self._setup.plan, 0, first_step, stream)


def _objects_mib() -> float:
    """What is in Ray's object store, as the node reports it several times a second."""
    import ray

    whole = ray.cluster_resources()["object_store_memory"]
    return float(whole - ray.available_resources().get("object_store_memory", 0.0)) / _BYTES_PER_MIB


def libraries_mib() -> float:
    """What a process takes that has imported what feeders and data tasks import, and has done nothing."""
    program = "import heliostat.training.feed, heliostat.data.stream, ray.data, process_tree; print(process_tree.own())"
    here = Path(__file__).parent
    found = subprocess.run([sys.executable, "-c", program], cwd=here, stdout=subprocess.PIPE, text=True, check=True)
    return float(found.stdout)


def stated_mib(image_bytes: float, crop_bytes: int, group_bytes: int) -> dict[str, float]:
    """Bounds of what ``RayPeer.memory`` measures, in MiB, from the constants of the stream and the feed.

    Python and its libraries come on top of what processes take, see ``libraries_mib``. A process that reads keeps row
    groups and indexes up to their bounds; a read holds its images as they came, as a list and as a table, and in each
    of its threads a row group. The feeder reads two chunks ahead and makes a slot. Objects are what Ray Data's tasks
    have brought and nobody has taken, the chunk that is being handed out, and the crops of the steps ahead, of the one
    that is taken, and of the slots that are being written.
    """
    chunk = min(CHUNK_BYTES, CHUNK_SAMPLES * image_bytes)
    keeps = GROUPS_MAX_BYTES + INDEXES_MAX_BYTES
    reads = 3 * chunk + THREADS * group_bytes
    step = SLOTS * SLOT_BATCH * (crop_bytes + image_bytes)
    bounds = {
        "feeder": keeps + 2 * reads + 2 * SLOT_BATCH * crop_bytes,
        "data_tasks": keeps + reads,
        "objects": _CHUNKS_AHEAD * CHUNK_BYTES + chunk + (_STEPS_AHEAD + 2) * step,
    }
    return {name: bound / _BYTES_PER_MIB for name, bound in bounds.items()}
