"""The quarantine: what was refused, file by file, beside each manifest.

``datasets/<name>/quarantine/<sha256 of the manifest>.jsonl`` lists every file that any ingest into the dataset has
refused up to that manifest, sorted; the manifest holds the number of lines. It is written before the manifest.
"""

from collections.abc import Iterable

from pydantic import ValidationError

from heliostat.config.base import Section
from heliostat.data.images import Reason
from heliostat.data.manifest import DatasetManifest
from heliostat.errors import CorruptManifestError
from heliostat.storage import Store


class QuarantinedFile(Section):
    """A refused file. ``id`` is the sha256 of its bytes, ``None`` where they were not read."""

    id: str | None
    source: str
    reason: Reason
    detail: str


def merge_quarantine(
    before: Iterable[QuarantinedFile], refused: Iterable[QuarantinedFile]
) -> tuple[QuarantinedFile, ...]:
    """Both lists as one, sorted; the same content refused again under the same name for the same reason counts once."""
    merged = {(file.source, file.id or "", file.reason): file for file in (*refused, *before)}
    return tuple(merged[key] for key in sorted(merged))


def write_quarantine(store: Store, manifest: DatasetManifest, files: Iterable[QuarantinedFile]) -> None:
    """Write the list that belongs to a manifest, if it has lines. ``store`` is the dataset's part of the root."""
    lines = "".join(f"{file.model_dump_json()}\n" for file in files)
    if lines:
        store.put(_key(manifest), lines.encode())


def load_quarantine(store: Store, manifest: DatasetManifest) -> tuple[QuarantinedFile, ...]:
    """The files that were refused up to a manifest. ``store`` is the dataset's part of the root.

    Raises:
        CorruptManifestError: the list is not in a known format or has another number of lines than the manifest says.
        ObjectNotFoundError: the list is gone.
    """
    if not manifest.quarantined:
        return ()
    key = _key(manifest)
    lines = store.get(key).splitlines()
    try:
        files = tuple(QuarantinedFile.model_validate_json(line) for line in lines)
    except ValidationError as error:
        raise _corrupt(f"{key} under {store.url} holds a line in no known format") from error
    if len(files) != manifest.quarantined:
        raise _corrupt(f"{key} under {store.url} has {len(files)} lines, the manifest says {manifest.quarantined}")
    return files


def _key(manifest: DatasetManifest) -> str:
    return f"quarantine/{manifest.sha256}.jsonl"


def _corrupt(fact: str) -> CorruptManifestError:
    return CorruptManifestError(fact, "Restore the object from a backup, or ingest the images again under another name")
