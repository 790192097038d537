"""The vectors of a universe's rows: where they lie, and which of them a stage wants."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from heliostat.curation.columns import vectors_of
from heliostat.curation.dedup import Bools
from heliostat.curation.image_maps import PROBLEM, MapResults, Run
from heliostat.curation.kmeans import Ints, Vectors
from heliostat.curation.universe import Universe
from heliostat.storage.results import ResultFolder

VECTOR = "vector"
_LENGTH_OFF = 0.01
"""By which the length of a vector may differ from 1: float16 makes it differ by less."""


@dataclass(frozen=True, slots=True)
class VectorPart:
    """Wanted rows of one shard. Small: it travels to whoever reads them.

    Attributes:
        shard: Which of the universe's shards it is.
        key: Of the shard's vectors.
        first: Number of the shard's first row.
        places: (N,) the wanted rows in the shard, ascending; each has a vector.
    """

    shard: int
    key: str
    first: int
    places: Ints

    @property
    def rows(self) -> Ints:
        """(N,) numbers in the universe."""
        return self.first + self.places

    def load(self, folder: ResultFolder) -> Vectors:
        """(N, D).

        Raises:
            CorruptResultError: they are damaged or gone.
        """
        column = folder.read(self.key, [VECTOR])[VECTOR]
        return vectors_of(column.take(self.places))


def usable_vectors(table: pa.Table) -> Bools:
    """Which rows have a direction, (N,): a vector of zeros or of what is no number has none.

    Raises:
        ValueError: there is no column of float16 lists of equal length, or its vectors are no unit vectors.
    """
    kind = table.schema.field(VECTOR).type if VECTOR in table.column_names else pa.null()
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16():
        raise ValueError(f"it gave no column {VECTOR!r} of lists of equally many float16")
    lengths = np.linalg.norm(vectors_of(table[VECTOR]).astype(np.float32), axis=1)
    usable: Bools = np.isfinite(lengths) & (lengths > 0)
    if len(wrong := lengths[usable & (np.abs(lengths - 1) > _LENGTH_OFF)]):
        raise ValueError(f"it gave a vector of length {wrong[0]:.3g}; 1 is wanted")
    return usable


@dataclass(frozen=True, slots=True)
class Embedded:
    """An embedding of all rows of a universe.

    Attributes:
        folder: Where vectors are.
        has_vector: (rows,) whether the image could be read.
        problems: What was wrong with the others, by row.
        width: D; 0 where no image at all could be read.
    """

    folder: ResultFolder
    keys: tuple[str | None, ...]
    firsts: Ints
    has_vector: Bools
    problems: dict[int, str]
    width: int

    def parts(self, wanted: Bools) -> list[VectorPart]:
        """Those of the wanted rows that have a vector, by shard; shards without any are left out."""
        ends = [*self.firsts.tolist(), len(wanted)][1:]
        found = []
        for shard, (key, first, end) in enumerate(zip(self.keys, self.firsts.tolist(), ends, strict=True)):
            places = np.flatnonzero(wanted[first:end] & self.has_vector[first:end])
            if key is not None and len(places):
                found.append(VectorPart(shard, key, first, places))
        return found


def embedded(universe: Universe, results: MapResults) -> Embedded:
    """Look through the results of an embedding for images that could not be read; most say in their names that none."""
    has_vector = np.zeros(universe.rows, np.bool_)
    problems: dict[int, str] = {}
    width = 0
    for number, shard in enumerate(universe.shards):
        if results.keys[number] is None:
            continue
        good = np.ones(shard.rows, np.bool_)
        if results.unreadable[number]:
            column = results.table(number, [PROBLEM])[PROBLEM]
            good = pc.is_null(column).to_numpy()
            problems |= {shard.first + place: column[place].as_py() for place in np.flatnonzero(~good).tolist()}
        has_vector[shard.first : shard.first + shard.rows] = good
        if not width and good.any():
            width = results.table(number, [VECTOR]).schema.field(VECTOR).type.list_size
    firsts = np.array([shard.first for shard in universe.shards], np.int64)
    return Embedded(results.folder, results.keys, firsts, has_vector, problems, width)


def take_rows(parts: Sequence[VectorPart], folder: ResultFolder, numbers: Ints, run: Run) -> Vectors:
    """Some of all rows of parts, by their place in them one after the other (ascending), (n, D); read by tasks."""
    ends = np.cumsum([len(part.places) for part in parts])
    cuts = [0, *np.searchsorted(numbers, ends).tolist()]
    starts = [0, *ends.tolist()]
    payloads = [
        (number, json.dumps([part.key]).encode() + b"\n" + part.places[numbers[first:last] - start].tobytes())
        for number, (part, start, (first, last)) in enumerate(zip(parts, starts, pairwise(cuts), strict=False))
        if first < last
    ]
    taken = dict(run(iter(payloads), _TakeRows(folder)))
    return np.concatenate([np.load(io.BytesIO(taken[number]), allow_pickle=False) for number, _ in payloads])


@dataclass(frozen=True, slots=True)
class _TakeRows:
    """A task: some vectors of one shard."""

    folder: ResultFolder

    def __call__(self, payload: bytes) -> bytes:
        header, _, places = payload.partition(b"\n")
        (key,) = json.loads(header)
        sink = io.BytesIO()
        np.save(sink, VectorPart(0, key, 0, np.frombuffer(places, np.int64)).load(self.folder), allow_pickle=False)
        return sink.getvalue()
