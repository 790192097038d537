"""The quarantine: what was refused, file by file, in parts that a manifest names.

``datasets/<name>/quarantine/<start of its sha256>.jsonl`` lists files that one ingest (a round of it, if it is a large
one) has refused and that no earlier part lists, sorted. A part never changes, is written before the manifest that names
it, and is inherited by all later ones: each publication adds at most one part, whatever the dataset has refused before.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError

from heliostat.config.base import Section
from heliostat.data.images import Reason
from heliostat.data.manifest import DatasetManifest, QuarantinePart
from heliostat.errors import CorruptManifestError
from heliostat.storage import Store
from heliostat.storage.store import READ_BYTES

_DETAIL = b',"detail":'
"""Ends what a line is recognised by. No value can hold it: JSON escapes quotes."""


class QuarantinedFile(Section):
    """A refused file. ``id`` is the sha256 of its bytes, ``None`` where they were not read."""

    source: str
    id: str | None
    reason: Reason
    detail: str


def write_quarantine(
    store: Store, known: Sequence[QuarantinePart], refused: Iterable[QuarantinedFile]
) -> QuarantinePart | None:
    """Write the files that no known part lists as a new part; ``None`` if there are none.

    The same content refused again under the same name for the same reason is listed once. Known parts are read line by
    line, so only ``refused`` counts in memory. ``store`` is the dataset's part of the root.

    Raises:
        CorruptManifestError: a known part is not what its hash says.
        ObjectNotFoundError: a known part is gone.
    """
    lines = {_identity(line): line for line in (file.model_dump_json().encode() for file in refused)}
    for part in known if lines else ():
        for line in _lines(store, part):
            lines.pop(_identity(line), None)
    if not lines:
        return None
    data = b"".join(lines[identity] + b"\n" for identity in sorted(lines))
    sha256 = hashlib.sha256(data).hexdigest()
    part = QuarantinePart(key=f"quarantine/{sha256[:16]}.jsonl", sha256=sha256, size_bytes=len(data), lines=len(lines))
    store.put(part.key, data)
    return part


def load_quarantine(store: Store, manifest: DatasetManifest) -> Iterator[QuarantinedFile]:
    """The files that were refused up to a manifest, part by part. ``store`` is the dataset's part of the root.

    Raises:
        CorruptManifestError: a part is not what its hash says, or not in a known format.
        ObjectNotFoundError: a part is gone.
    """
    for part in manifest.quarantine:
        for line in _lines(store, part):
            try:
                yield QuarantinedFile.model_validate_json(line)
            except ValidationError as error:
                raise _corrupt(store, part, "holds a line in no known format") from error


def _identity(line: bytes) -> bytes:
    return line.rpartition(_DETAIL)[0]


def _lines(store: Store, part: QuarantinePart) -> Iterator[bytes]:
    """The lines of a part; it is an error after the last one if they are others than the manifest names."""
    digest = hashlib.sha256()
    rest = b""
    for start in range(0, part.size_bytes, READ_BYTES):
        data = store.get(part.key, start, min(start + READ_BYTES, part.size_bytes))
        digest.update(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest or digest.hexdigest() != part.sha256:
        raise _corrupt(store, part, "does not have the hash that the manifest names")


def _corrupt(store: Store, part: QuarantinePart, fault: str) -> CorruptManifestError:
    return CorruptManifestError(
        f"{part.key} under {store.url} {fault}",
        "Restore the object from a backup, or ingest the images again under another name",
    )
