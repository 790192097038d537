"""Functions of images, each computed once per shard and kept: embeddings, measures of quality, whatever is plugged in.

Results lie at ``image_maps/<name>-<fingerprint>/<shard>-<unreadable>-<sha256>.parquet``, one row per row of the shard.
Shards never change and are named by their content, so what one curation has computed serves all later ones, also of a
dataset that has grown meanwhile. An image that cannot be read has a ``problem`` instead of a result; the rest goes on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.curation.universe import Universe, UniverseShard
from heliostat.data.decode import SHRINKS, RgbImage, decode_rgb, read_header
from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.data.ray_tasks import ActorPool, Task
from heliostat.data.shards import read_row_group
from heliostat.errors import CorruptShardError, HeliostatError, PluginFailedError, RejectedImageError
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store
from heliostat.storage.results import ResultFolder

PROBLEM, SOURCE = "problem", "source"
_FINGERPRINT_CHARS = 16
_DAMAGED = "d"
"""Ends the name of a result if not all of its shard could be read."""

Usable = Callable[[pa.Table], npt.NDArray[np.bool_]]
"""Which rows of a result can be used; raises ValueError if the table is not what it should be. Small and picklable."""
Compute = Callable[[Sequence[RgbImage]], pa.Table]
"""One row per image."""
Run = Callable[[Iterator[tuple[int, bytes]], Task | ActorPool], Iterator[tuple[int, bytes]]]
"""As ``heliostat.data.ray_tasks.run_tasks``."""
Report = Callable[[int, int], None]
"""Told how many images of how many are done."""


class ImageMap(Protocol):
    """What is computed of every image. Small and picklable: it travels to all workers.

    A plug-in is a function without arguments that gives such an object, named ``package.module:function``.
    """

    @property
    def name(self) -> str:
        """Of the function, for people and for the folder of its results."""

    @property
    def fingerprint(self) -> str:
        """Of everything that results depend on, weights included: another one, other results."""

    @property
    def short_side_px(self) -> int:
        """Images may come smaller than they are, but no smaller than this."""

    @property
    def gpus(self) -> float:
        """Of each process that computes it."""

    def open(self) -> Compute:
        """What computes it, in the process that does; called once there."""


@dataclass(frozen=True, slots=True)
class MapResults:
    """The results of one function over a universe: by shard, in the order of its shards; none where not wanted."""

    folder: ResultFolder
    keys: tuple[str | None, ...]
    unreadable: tuple[int, ...]
    """Images of each shard that have a problem instead of a result."""

    def table(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Results of one shard, one row per image. Only of shards with rows that were wanted.

        Raises:
            CorruptResultError: they are damaged or gone.
        """
        key = self.keys[shard]
        if key is None:
            raise ValueError(f"no row of shard {shard} was wanted")
        return self.folder.read(key, columns)


def results_folder(root: Store, function: ImageMap) -> ResultFolder:
    """Where the results of a function are, by the names of shards."""
    fingerprint = hashlib.sha256(function.fingerprint.encode()).hexdigest()[:_FINGERPRINT_CHARS]
    return ResultFolder(root.sub(f"image_maps/{function.name}-{fingerprint}"))


def map_images(
    universe: Universe,
    function: ImageMap,
    usable: Usable,
    wanted: npt.NDArray[np.bool_],
    run: Run,
    report: Report = lambda done, total: None,
) -> MapResults:
    """Compute a function of all images of the shards that hold wanted rows; what is there is not computed again.

    Args:
        universe: Whose images.
        function: What.
        usable: Looks at each result before it is kept. An image whose result cannot be used counts as unreadable.
        wanted: (rows,) of the universe.
        run: Where the work is done.
        report: Told of the progress, in images.

    Raises:
        PluginFailedError: the function raised something, or gave something else than it should.
        StorageError: the store does not cooperate. What is done stays done.
    """
    folder = results_folder(universe.root, function)
    found = stored_results(folder)
    asked = {
        number: shard
        for number, shard in enumerate(universe.shards)
        if wanted[shard.first : shard.first + shard.rows].any()
    }
    left = {number: shard for number, shard in asked.items() if shard.name not in found}
    total = sum(shard.rows for shard in asked.values())
    done = total - sum(shard.rows for shard in left.values())
    report(done, total)
    payloads = ((number, _payload(universe, shard)) for number, shard in left.items())
    for number, key in run(payloads, ActorPool(_MapShards(universe.root, folder, function, usable), function.gpus)):
        found[left[number].name] = key.decode(), _unreadable_of(key.decode())
        done += left[number].rows
        report(done, total)
    kept = [found.get(shard.name, (None, 0)) for shard in universe.shards]
    return MapResults(folder, tuple(key for key, _ in kept), tuple(unreadable for _, unreadable in kept))


def stored_results(folder: ResultFolder) -> dict[str, tuple[str | None, int]]:
    """Keys of what is computed already by the names of shards, and how many images of each could not be read.

    Without those of damaged shards: they may have been repaired meanwhile.
    """
    keys = {name.rpartition("-")[0]: key for name, key in folder.found().items() if not name.endswith(_DAMAGED)}
    return {shard: (key, _unreadable_of(key)) for shard, key in keys.items()}


def _unreadable_of(key: str) -> int:
    return int(key.rsplit("-", 2)[1].removesuffix(_DAMAGED))


def _payload(universe: Universe, shard: UniverseShard) -> bytes:
    part = universe.parts[shard.part]
    return json.dumps([part.name, part.manifest_sha256, shard.shard, shard.name]).encode()


@dataclass(frozen=True, slots=True)
class _MapShards:
    """Makes the task of a process."""

    root: Store
    folder: ResultFolder
    function: ImageMap
    usable: Usable

    def __call__(self) -> Task:
        compute = self._opened()

        def task(payload: bytes) -> bytes:
            name, sha256, shard, shard_name = json.loads(payload)
            manifest = _manifest(self.root, name, sha256)
            store = dataset_store(self.root, name)
            groups = range(len(manifest.shards[shard].row_groups))
            found = [self._group(store, manifest, shard, group, compute) for group in groups]
            # A group without a single good image knows only its problems.
            table = pa.concat_tables([each for each, _ in found], promote_options="default")
            unreadable = str(len(table) - table[PROBLEM].null_count)
            damaged = _DAMAGED if any(is_damaged for _, is_damaged in found) else ""
            return self.folder.write(f"{shard_name}-{unreadable}{damaged}", table).encode()

        return task

    def _group(
        self, store: Store, manifest: DatasetManifest, shard: int, group: int, compute: Compute
    ) -> tuple[pa.Table, bool]:
        """Results of a row group, and whether it is damaged."""
        rows = manifest.shards[shard].row_groups[group].rows
        try:
            table = read_row_group(store, manifest, shard, group)
        except CorruptShardError as error:
            lost = {SOURCE: pa.nulls(rows, pa.string()), PROBLEM: pa.array([error.fact] * rows, pa.string())}
            return pa.table(lost), True
        pixels, problems = self._decoded(table["image"].to_pylist())
        known = {SOURCE: table["source"], PROBLEM: pa.array(problems, pa.string())}
        if not pixels:
            return pa.table(known), False
        good = np.array([problem is None for problem in problems])
        places = pa.array(np.cumsum(good) - 1, pa.int64(), mask=~good)
        computed, usable = self._computed(compute, pixels)
        for place in np.flatnonzero(good)[~usable].tolist():
            problems[place] = f"{self.function.name} gave nothing usable for it"
        known[PROBLEM] = pa.array(problems, pa.string())
        columns = {name: computed[name].take(places) for name in computed.column_names}
        return pa.table({**known, **columns}), False

    def _opened(self) -> Compute:
        try:
            return self.function.open()
        except HeliostatError:
            raise
        except Exception as error:  # anything may come out of code that is not ours
            raise self._failed(f"{type(error).__name__}: {error}") from error

    def _computed(self, compute: Compute, pixels: Sequence[RgbImage]) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
        try:
            computed = compute(pixels)
            if len(computed) != len(pixels):
                raise ValueError(f"it gave {len(computed)} rows for {len(pixels)} images")
            return computed, self.usable(computed)
        except HeliostatError:
            raise
        except Exception as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error

    def _failed(self, fact: str) -> PluginFailedError:
        return PluginFailedError(
            f"{self.function.name} failed: {fact}", "Repair it; the same command goes on from here"
        )

    def _decoded(self, images: Sequence[bytes]) -> tuple[list[RgbImage], list[str | None]]:
        pixels: list[RgbImage] = []
        problems: list[str | None] = []
        for image in images:
            try:
                pixels.append(decode_small(image, self.function.short_side_px))
                problems.append(None)
            except RejectedImageError as error:
                problems.append(error.fact)
        return pixels, problems


def decode_small(image: bytes, short_side_px: int) -> RgbImage:
    """Pixels of an image, as small as its codec makes it without going below a short side.

    Raises:
        RejectedImageError: the bytes are no image.
    """
    header = read_header(image)
    fits = [shrink for shrink in SHRINKS if min(header.height, header.width) // shrink >= short_side_px]
    return decode_rgb(image, max(fits, default=1) if header.shrinks else 1)


@lru_cache(maxsize=16)
def _manifest(root: Store, name: str, sha256: str) -> DatasetManifest:
    return load_manifest(root, name, sha256)
