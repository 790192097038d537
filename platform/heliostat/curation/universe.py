"""All images that a curation looks at, numbered through: the pool, and the sets that it is compared with.

Datasets are shards and selections from shards; each shard is there once, however many datasets share it. A row's number
is its place in all shards, one after the other, in the order in which the datasets are named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import Ints
from heliostat.data.manifest import DatasetManifest, Part, Shard, load_manifest
from heliostat.data.selection import load_parts, read_selected
from heliostat.data.shard_index import Index, read_index
from heliostat.errors import CorruptShardError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight
from heliostat.storage.layout import dataset_store


@dataclass(frozen=True, slots=True)
class UniverseShard:
    """A shard and where its rows are.

    Attributes:
        part: Which of the universe's parts holds it.
        shard: Which of that part's shards it is.
        row: Number of its first row in that part.
        first: Number of its first row in the universe.
        rows: How many it has.
        name: Tells it from all other shards that exist.
    """

    part: int
    shard: int
    row: int
    first: int
    rows: int
    name: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of every row without its image, (N,) each; rows of an index that cannot be read are not ``known``.

    Attributes:
        ids: Hashes of the images, ``V32``.
        widths, heights: Pixels.
        sizes: Bytes.
        known: Whether the index of the row's shard was whole.
        problems: What was wrong with an index, by shard.
    """

    ids: npt.NDArray[np.void]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]
    problems: dict[int, str]


class Universe:
    """See the module.

    Attributes:
        root: Where the datasets are.
        parts: Datasets with shards of their own.
        manifests: Of the parts.
        shards: Of all parts, in order.
        rows: How many.
    """

    def __init__(self, root: Store, datasets: Sequence[Part]) -> None:
        self.root = root
        self._named = {each.name: load_manifest(root, each.name, each.manifest_sha256) for each in datasets}
        self._held = {name: load_parts(root, manifest) for name, manifest in self._named.items()}
        self.manifests = tuple({part.sha256: part for held in self._held.values() for part in held}.values())
        self.parts = tuple(Part(name=each.name, manifest_sha256=each.sha256) for each in self.manifests)
        self.shards = tuple(_unique_shards(self.manifests))
        self._by_name = {shard.name: shard for shard in self.shards}
        self._firsts = np.array([shard.first for shard in self.shards], np.int64)

    @property
    def rows(self) -> int:
        """Of all shards."""
        return self.shards[-1].first + self.shards[-1].rows if self.shards else 0

    def rows_of(self, dataset: str) -> Ints:
        """Numbers of the rows of a dataset, ascending."""
        manifest, held = self._named[dataset], self._held[dataset]
        if manifest.selection is None:
            return np.sort(self._numbers(manifest, np.arange(manifest.rows)))
        store = dataset_store(self.root, manifest.name)
        found = [read_selected(store, manifest.selection, chunk) for chunk in range(len(manifest.selection.row_groups))]
        numbers = [self._numbers(held[part], rows[parts == part]) for parts, rows in found for part in np.unique(parts)]
        return np.sort(np.concatenate(numbers))

    def rows_in(self, datasets: Sequence[str]) -> Ints:
        """Numbers of the rows of several datasets, one after the other, each row where it stands first."""
        rows = np.concatenate([np.empty(0, np.int64), *(self.rows_of(name) for name in datasets)])
        return rows[np.sort(np.unique(rows, return_index=True)[1])]

    def place_of(self, rows: Ints) -> tuple[Ints, Ints]:
        """Part of each row, and its number in that part's manifest."""
        shards = np.searchsorted(self._firsts, rows, side="right") - 1
        parts, starts = (np.array([getattr(shard, name) for shard in self.shards]) for name in ("part", "row"))
        return parts[shards], starts[shards] + rows - self._firsts[shards]

    def listing(self) -> Listing:
        """Read the indexes of all shards, 56 bytes per image."""
        ids = np.zeros(self.rows, "V32")
        widths, heights = np.zeros(self.rows, np.int32), np.zeros(self.rows, np.int32)
        sizes, known = np.zeros(self.rows, np.int64), np.zeros(self.rows, np.bool_)
        problems: dict[int, str] = {}
        for number, (shard, found) in enumerate(zip(self.shards, map_in_flight(self._index, self.shards), strict=True)):
            here = slice(shard.first, shard.first + shard.rows)
            if isinstance(found, CorruptShardError):
                problems[number] = found.fact
                continue
            ids[here], sizes[here], known[here] = found["id"], found["size"], True
            widths[here], heights[here] = found["width"], found["height"]
        return Listing(ids, widths, heights, sizes, known, problems)

    def ids_of(self, shard: UniverseShard) -> npt.NDArray[np.void]:
        """Ids of a shard's rows, ``V32``.

        Raises:
            CorruptShardError: its index is damaged or gone.
        """
        found = self._index(shard)
        if isinstance(found, CorruptShardError):
            raise found
        return np.asarray(found["id"])

    def _index(self, shard: UniverseShard) -> Index | CorruptShardError:
        manifest = self.manifests[shard.part]
        try:
            return read_index(dataset_store(self.root, manifest.name), manifest.shards[shard.shard])
        except CorruptShardError as error:
            return error

    def _numbers(self, manifest: DatasetManifest, rows: Ints) -> Ints:
        """Numbers in the universe of rows of a manifest."""
        starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
        firsts = np.array([self._by_name[_name_of(shard)].first for shard in manifest.shards], np.int64)
        shards = np.searchsorted(starts, rows, side="right") - 1
        numbers: Ints = firsts[shards] + rows - starts[shards]
        return numbers


def _name_of(shard: Shard) -> str:
    return shard.key.removeprefix("shards/part-").removesuffix(".parquet")


def _unique_shards(manifests: Sequence[DatasetManifest]) -> Iterator[UniverseShard]:
    seen: set[str] = set()
    first = 0
    for part, manifest in enumerate(manifests):
        row = 0
        for number, shard in enumerate(manifest.shards):
            if (name := _name_of(shard)) not in seen:
                yield UniverseShard(part, number, row, first, shard.rows, name)
                seen.add(name)
                first += shard.rows
            row += shard.rows
