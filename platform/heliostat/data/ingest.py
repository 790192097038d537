"""Ingest: a folder of images becomes shards and a manifest, in two passes of Ray Data.

The first pass reads, hashes and decodes every file once. The driver drops duplicates and sorts what is new by id; the
second pass writes shards, each in a task of its own. A hash orders as well as a shuffle does: rows that are neighbours
in a shard have nothing in common, however the folder is sorted, and the result depends on the images alone, not on the
number of tasks or on which of them ends first.

The manifest comes last. An ingest that stops anywhere before leaves at most shards that nothing names.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from heliostat import __version__
from heliostat.config.base import Name
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits
from heliostat.data.manifest import DatasetManifest, Head, Provenance, Shard, dataset_store, read_head, write_manifest
from heliostat.data.passes import Candidate, check_files, pack_shards
from heliostat.data.quarantine import QuarantinedFile, load_quarantine, merge_quarantine, write_quarantine
from heliostat.data.shards import DEFAULT_LAYOUT, ShardLayout, plan_shards, read_ids
from heliostat.data.sources import FolderListing, list_folder
from heliostat.errors import InvalidValueError, NoImagesError, ObjectExistsError, VersionConflictError
from heliostat.storage import Store

_PUBLISH_ATTEMPTS = 5
"""How often an ingest begins its second pass anew because another one published first."""


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is, from the start of each stage; ``total`` counts files to check, then new images to store."""

    stage: Literal["check", "store"]
    done: int
    total: int
    quarantined: int


Report = Callable[[IngestProgress], None]


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an ingest did. ``images`` and ``size_bytes`` (of shards) are what it added, ``dataset_images`` is the sum.

    ``reasons`` counts the quarantined files of this source by reason, ``skipped`` the hidden files and companions.
    """

    manifest_sha256: str
    images: int
    dataset_images: int
    duplicates: int
    quarantined: int
    reasons: dict[str, int]
    skipped: int
    size_bytes: int
    duration_s: float


def prepare(folder: str | Path, root: Store, name: str) -> FolderListing:
    """List a folder and look at the dataset: all that can be found wrong before Ray starts and any image is read.

    Raises:
        InvalidValueError: the name cannot be that of a dataset.
        SourceNotFoundError, NoImagesError: the folder is missing or holds nothing that may be an image.
        StorageError: the store does not cooperate.
    """
    _check_name(name)
    listing = list_folder(folder)
    read_head(root, name)
    return listing


def ingest(
    source: str | Path | FolderListing,
    root: Store,
    name: str,
    *,
    report: Report = lambda progress: None,
    limits: ImageLimits = DEFAULT_LIMITS,
    layout: ShardLayout = DEFAULT_LAYOUT,
) -> IngestResult:
    """Add the images below a folder, or of one that is prepared, to a dataset, which is made if there is none.

    Ray must be initialised, and the folder visible under the same path on all its nodes. Doing it again adds nothing
    and leaves the manifest as it is. An image that lies in folders of different labels has none; one that the dataset
    has already keeps the label it has.

    Raises:
        InvalidValueError: the name cannot be that of a dataset.
        SourceNotFoundError, NoImagesError: the folder is missing or holds no usable image. Nothing is written.
        StorageError: the store does not cooperate.
    """
    started = time.monotonic()
    listing = source if isinstance(source, FolderListing) else prepare(source, root, name)
    images, refused = _check(listing, limits, report)
    if not images:
        raise _no_images(listing.folder, refused)
    job = _Job(root, name, listing.folder, images, refused, limits, layout, report)
    added = job.publish_until_first()
    return IngestResult(
        manifest_sha256=added.manifest.sha256,
        images=added.images,
        dataset_images=added.manifest.rows,
        duplicates=len(images) - added.images - len(added.changed),
        quarantined=len(refused) + len(added.changed),
        reasons=dict(sorted(Counter(file.reason.value for file in (*refused, *added.changed)).items())),
        skipped=listing.skipped,
        size_bytes=added.size_bytes,
        duration_s=time.monotonic() - started,
    )


def unique_images(images: Iterable[Candidate]) -> list[Candidate]:
    """One of each content, sorted by id: the copy with the first name, and the label if the copies have one only."""
    copies: dict[str, list[Candidate]] = {}
    for image in images:
        copies.setdefault(image.id, []).append(image)
    return [_one_of(copies[name]) for name in sorted(copies)]


def extend_labels(before: Sequence[str], images: Iterable[Candidate]) -> tuple[str, ...]:
    """Class names with those of new images after them: rows that are stored hold indices, so none may move."""
    new = {image.label for image in images if image.label is not None} - set(before)
    return (*before, *sorted(new))


def _one_of(copies: list[Candidate]) -> Candidate:
    labels = {copy.label for copy in copies if copy.label is not None}
    first = min(copies, key=lambda copy: copy.source)
    return first.model_copy(update={"label": labels.pop() if len(labels) == 1 else None})


def _check(
    listing: FolderListing, limits: ImageLimits, report: Report
) -> tuple[list[Candidate], list[QuarantinedFile]]:
    images: list[Candidate] = []
    refused = [
        QuarantinedFile(id=None, source=file.source, reason=file.reason, detail=file.detail) for file in listing.refused
    ]
    report(IngestProgress("check", 0, len(listing.items), len(refused)))
    for some_images, some_refused in check_files(listing.items, limits):
        images += some_images
        refused += some_refused
        done = len(images) + len(refused) - len(listing.refused)
        report(IngestProgress("check", done, len(listing.items), len(refused)))
    return images, refused


@dataclass(frozen=True, slots=True)
class _Added:
    """A manifest that is published now, and what this ingest added to it."""

    manifest: DatasetManifest
    images: int
    size_bytes: int
    changed: list[QuarantinedFile]


@dataclass(frozen=True, slots=True)
class _Job:
    """An ingest whose images are known."""

    root: Store
    name: str
    source: str
    images: list[Candidate]
    refused: list[QuarantinedFile]
    limits: ImageLimits
    layout: ShardLayout
    report: Report

    def publish_until_first(self) -> _Added:
        """Add to the newest manifest; to a newer one if another ingest publishes meanwhile."""
        for _ in range(_PUBLISH_ATTEMPTS - 1):
            try:
                return self._publish(read_head(self.root, self.name))
            except (VersionConflictError, ObjectExistsError):
                continue
        return self._publish(read_head(self.root, self.name))

    def _publish(self, base: Head | None) -> _Added:
        store = dataset_store(self.root, self.name)
        before = base.manifest if base else DatasetManifest(name=self.name)
        known = {name for shard in before.shards for name in read_ids(store, shard)}
        new = [image for image in unique_images(self.images) if image.id not in known]
        labels = extend_labels(before.labels, new)
        shards, changed = self._store(new, labels)
        quarantine = merge_quarantine(load_quarantine(store, before), [*self.refused, *changed])
        manifest = DatasetManifest(
            name=self.name,
            labels=labels if shards else before.labels,
            shards=(*before.shards, *shards),
            quarantined=len(quarantine),
        )
        rows = sum(shard.rows for shard in shards)
        if not manifest.rows:
            raise _no_images(self.source, [*self.refused, *changed])
        if manifest != before:
            write_quarantine(store, manifest, quarantine)
            write_manifest(self.root, manifest, self._provenance(base, rows, len(self.images) - len(new)), base)
        return _Added(manifest, rows, sum(shard.size_bytes for shard in shards), changed)

    def _store(self, new: list[Candidate], labels: Sequence[str]) -> tuple[list[Shard], list[QuarantinedFile]]:
        cut = plan_shards([image.size_bytes for image in new], self.layout)
        plan = [[[new[row] for row in group] for group in shard] for shard in cut]
        indices = {label: index for index, label in enumerate(labels)}
        shards: dict[int, Shard] = {}
        if new:
            self.report(IngestProgress("store", 0, len(new), len(self.refused)))
        changed: list[QuarantinedFile] = []
        for index, shard, some_changed in pack_shards(plan, indices, dataset_store(self.root, self.name), self.limits):
            changed += some_changed
            if shard:
                shards[index] = shard
            done = sum(shard.rows for shard in shards.values()) + len(changed)
            self.report(IngestProgress("store", done, len(new), len(self.refused) + len(changed)))
        return [shards[index] for index in sorted(shards)], changed

    def _provenance(self, base: Head | None, images: int, duplicates: int) -> Provenance:
        return Provenance(
            source=self.source,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            heliostat_version=__version__,
            parent_sha256=base.manifest.sha256 if base else None,
            images_added=images,
            duplicates=duplicates,
        )


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidValueError(
            f"the dataset name {name!r} is not 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
            "Choose another name",
        ) from error


def _no_images(folder: str, refused: Sequence[QuarantinedFile]) -> NoImagesError:
    kinds = Counter(file.reason.value for file in refused).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in kinds)
    first = min(refused, key=lambda file: file.source)
    return NoImagesError(
        f"none of the {len(refused)} files in {folder!r} is a usable image ({counts}); the first is "
        f"{first.source!r}: {first.detail}",
        "Give a folder that holds JPEG, PNG or WebP files",
    )
