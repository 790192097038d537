"""What becomes of every image, and why: each is left out by one stage, or taken for one reason.

Stored per shard, with the image's id and what it was left out for, so that anybody can ask later
(``heliostat curation explain``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from heliostat.curation.dedup import Bools, Dropped
from heliostat.curation.kmeans import Ints
from heliostat.curation.similarity import NO_ROW
from heliostat.curation.universe import Universe
from heliostat.storage.in_flight import map_in_flight
from heliostat.storage.results import ResultFolder

_UNDECIDED = -1


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one image, as it is stored."""

    id: str
    dataset: str
    row: int
    """In that dataset's manifest."""
    is_kept: bool
    stage: str
    reason: str
    because_of: str | None
    """Id of the image that it repeats, touches or was retrieved for."""


class Fates:
    """Fates of rows while they are decided.

    Args:
        rows: Of the universe.
        concerned: Rows whose fate is asked for: those of the pool, and those that are taken as they are.
    """

    def __init__(self, rows: int, concerned: Ints) -> None:
        self.reasons: list[tuple[str, str, bool]] = []
        """Stage, reason, and whether it is one to keep an image."""
        self._code = np.full(rows, _UNDECIDED, np.int16)
        self._because_of = np.full(rows, NO_ROW)
        self._is_concerned = np.zeros(rows, np.bool_)
        self._is_concerned[concerned] = True

    @property
    def alive(self) -> Bools:
        """Rows that nothing has been decided about."""
        alive: Bools = self._is_concerned & (self._code == _UNDECIDED)
        return alive

    @property
    def kept(self) -> Bools:
        """Rows that were taken."""
        return self._with_reason([number for number, reason in enumerate(self.reasons) if reason[2]])

    def drop(self, stage: str, reason: str, rows: Ints, because_of: Ints | None = None) -> None:
        """Leave rows out; those that are decided already stay as they are."""
        self._decide((stage, reason, False), rows, because_of)

    def keep(self, stage: str, reason: str, rows: Ints, because_of: Ints | None = None) -> None:
        """Take rows; those that are decided already stay as they are: the first reason counts."""
        self._decide((stage, reason, True), rows, because_of)

    def drop_duplicates(self, stage: str, reason: str, found: Dropped) -> None:
        """Leave out what repeats others."""
        self.drop(stage, reason, found.rows, found.because_of)

    def counts(self) -> dict[tuple[str, str, bool], int]:
        """Rows by stage and reason, in the order in which they were decided."""
        counted = np.bincount(self._code[self._code != _UNDECIDED], minlength=len(self.reasons))
        return {reason: int(counted[number]) for number, reason in enumerate(self.reasons)}

    def reasons_of(self, rows: Ints) -> list[str]:
        """The reason of each row that is decided."""
        return [self.reasons[code][1] for code in self._code[rows].tolist()]

    def write(self, universe: Universe, ids: npt.NDArray[np.void], folder: ResultFolder) -> None:
        """Store what was decided, shard by shard."""
        for number, shard in enumerate(universe.shards):
            decided = np.flatnonzero(self._code[shard.first : shard.first + shard.rows] != _UNDECIDED)
            if not len(decided):
                continue
            rows = shard.first + decided
            other = self._because_of[rows]
            chosen = [self.reasons[code] for code in self._code[rows].tolist()]
            table = pa.table(
                {
                    "id": hash_column(ids[rows]),
                    "row": shard.row + decided,
                    "is_kept": [kept for _, _, kept in chosen],
                    "stage": pa.array([stage for stage, _, _ in chosen]).dictionary_encode(),
                    "reason": pa.array([reason for _, reason, _ in chosen]).dictionary_encode(),
                    "because_of": pc.if_else(pa.array(other != NO_ROW), hash_column(ids[np.maximum(other, 0)]), None),
                }
            )
            dataset = universe.parts[shard.part].name
            folder.write(f"{number:08d}", table.replace_schema_metadata({"dataset": dataset}))

    def _with_reason(self, numbers: list[int]) -> Bools:
        return np.isin(self._code, numbers)

    def _decide(self, reason: tuple[str, str, bool], rows: Ints, because_of: Ints | None) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
        undecided = self.alive[rows]
        self._code[rows[undecided]] = self.reasons.index(reason)
        if because_of is not None:
            self._because_of[rows[undecided]] = because_of[undecided]


def read_fates(folder: ResultFolder) -> pa.Table:
    """All fates of a curation, about a hundred bytes each: the columns of a ``Fate``, ids as 32 bytes.

    Raises:
        CorruptResultError: some are damaged.
    """
    return pa.concat_tables(_read(folder, key) for key in sorted(folder.found().values())).unify_dictionaries()


def find_fate(folder: ResultFolder, image_id: str) -> Fate | None:
    """The fate of one image. It may be there twice: what was kept answers, not its copy."""
    dropped: Fate | None = None
    wanted = pa.scalar(bytes.fromhex(image_id), pa.binary(32))
    for table in map_in_flight(partial(_read, folder), sorted(folder.found().values())):
        for fate in fates_in(table.filter(pc.equal(table["id"], wanted))):
            if fate.is_kept:
                return fate
            dropped = dropped or fate
    return dropped


def fates_in(table: pa.Table) -> Iterator[Fate]:
    """Rows of what ``read_fates`` gave, one by one."""
    for row in table.to_pylist():
        other = row["because_of"]
        yield Fate(**{**row, "id": row["id"].hex(), "because_of": None if other is None else other.hex()})


def _read(folder: ResultFolder, key: str) -> pa.Table:
    table = folder.read(key)
    dataset = pa.scalar(table.schema.metadata[b"dataset"].decode())
    return table.append_column("dataset", pa.repeat(dataset, len(table)).dictionary_encode()).replace_schema_metadata()


def hash_column(ids: npt.NDArray[np.void]) -> pa.Array:
    """Ids (``V32``) as a column of 32 bytes each."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids).tobytes())]
    )
