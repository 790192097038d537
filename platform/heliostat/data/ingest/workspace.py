"""The working objects of an ingest: what lets one that was killed go on where it was.

Below ``datasets/<name>/ingests/<ingest id>/``:

```
checked/<unit>-<fingerprint>.parquet   what the first pass found in a unit of the source
spool/<unit>-<fingerprint>             images that cannot be read from the source again, one after the other
packed/<hash of the rows>.json         a shard that the second pass has uploaded
rounds/<round>.json                    a round that is published, with what it did
```

The id is a hash of the source's description and of every option that changes what an image becomes, so the same command
finds what it left behind. Nothing else ever reads these objects; the first three kinds go when their round is
published, all go when the ingest ends.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.ingest.checked import CHECKED
from heliostat.data.ingest.rounds import RoundNote
from heliostat.data.sources import Unit
from heliostat.errors import ObjectNotFoundError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight

_FORMAT = 2
"""Of the working objects. Another one is another ingest id."""
_PASSING = pa.array(
    [reason.value for reason in (Reason.UNREADABLE, Reason.TOO_SLOW, Reason.TOO_MUCH_MEMORY, Reason.DECODER_CRASHED)]
)
"""Reasons that need not hold when the same item is looked at again."""


def ingest_id(description: str, limits: ImageLimits, resize_px: int | None, edit: str | None) -> str:
    """The name of an ingest: 16 hexadecimal digits. ``edit`` is the fingerprint of what changes images."""
    options = {
        "format": _FORMAT,
        "source": description,
        "limits": asdict(limits),
        "resize_px": resize_px,
        "edit": edit,
    }
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=sorted).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The working objects of one ingest. ``store`` is their part of the root."""

    store: Store

    def put_checked(self, unit: Unit, checked: pa.Table) -> bytes:
        """Keep what the first pass found in a unit; returns it as bytes."""
        buffer = io.BytesIO()
        pq.write_table(checked, buffer)
        self.store.put(_checked_key(unit), buffer.getvalue())
        return buffer.getvalue()

    def load_checked(self, units: Iterable[Unit]) -> dict[int, pa.Table]:
        """What is already known of units, by their index.

        A unit of which something was refused for a cause that may have passed (a disk or a host that did not answer,
        a busy machine) is not known: it is checked again.
        """
        there = {info.key for info in self.store.list("checked/")}
        known = [unit for unit in units if _checked_key(unit) in there]
        found = map_in_flight(lambda unit: (unit.index, self._get(_checked_key(unit))), known)
        tables = ((index, parse_checked(data)) for index, data in found if data is not None)
        return {index: table for index, table in tables if not _is_passing(table)}

    def spool_key(self, unit: Unit) -> str:
        """Where a unit's images are spooled."""
        return f"spool/{_name(unit)}"

    def put_packed(self, plan: str, record: bytes) -> None:
        """Keep what became of the rows of a planned shard, named by their hash."""
        self.store.put(f"packed/{plan}.json", record)

    def load_packed(self, plans: Iterable[str]) -> dict[str, bytes]:
        """What became of planned shards, as far as an earlier start came."""
        there = {info.key for info in self.store.list("packed/")}
        known = [plan for plan in plans if f"packed/{plan}.json" in there]
        found = map_in_flight(lambda plan: (plan, self._get(f"packed/{plan}.json")), known)
        return {plan: data for plan, data in found if data is not None}

    def load_round(self, index: int) -> RoundNote | None:
        """The note of a round, if it is finished, or if it was about to publish a manifest."""
        note = self._get(_round_key(index))
        return RoundNote.model_validate_json(note) if note else None

    def begin_publishing(self, index: int, note: RoundNote) -> None:
        """Note what a round will have done as soon as the manifest that the note names is the dataset's."""
        self.store.put(_round_key(index), note.model_dump_json().encode())

    def end_round(self, index: int, note: RoundNote) -> None:
        """Note that a round is finished and remove everything that it needed."""
        self.store.put(_round_key(index), note.model_dump_json().encode())
        for prefix in ("packed/", "checked/", "spool/"):  # a record never names a spool that is gone
            self._delete(prefix)

    def end(self) -> None:
        """Remove everything."""
        self._delete("")

    def _delete(self, prefix: str) -> None:
        for _ in map_in_flight(self.store.delete, (info.key for info in self.store.list(prefix))):
            pass

    def _get(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except ObjectNotFoundError:
            return None


def parse_checked(data: bytes) -> pa.Table:
    """A record of the first pass as a table of ``CHECKED``."""
    return pq.read_table(io.BytesIO(data), schema=CHECKED, use_threads=False)


def _is_passing(checked: pa.Table) -> bool:
    """Whether one of the refusals may have had a cause that has passed."""
    return bool(pc.any(pc.is_in(checked["reason"], value_set=_PASSING)).as_py())


def _checked_key(unit: Unit) -> str:
    return f"checked/{_name(unit)}.parquet"


def _name(unit: Unit) -> str:
    return f"{unit.index:08}-{unit.fingerprint[:16]}"


def _round_key(index: int) -> str:
    return f"rounds/{index:06}.json"
