"""Ingest: images from a source become shards and a manifest, as a job of Ray Data that can be killed at any time.

The source is taken in rounds of bounded size (``rounds.py``). In each the first pass reads, hashes and decodes every
item once (``first_pass.py``); the driver drops duplicates and sorts what is new by id; the second pass writes shards,
each in a task of its own (``second_pass.py``). A hash orders as well as a shuffle does: rows that are neighbours in a
shard have nothing in common, however the source is sorted, and the result depends on the images alone, not on the
number of tasks or on which of them ends first.

The manifest of a round comes last. What is done is noted in working objects (``workspace.py``): the same command goes
on where a killed one was.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from heliostat.data.edits import open_edit
from heliostat.data.ingest.checking import check_units
from heliostat.data.ingest.job import DEFAULT_OPTIONS, IngestOptions, IngestProgress, Job, Report
from heliostat.data.ingest.publishing import Published, RoundToPublish
from heliostat.data.ingest.rounds import RoundNote, Tally, cut_rounds, round_fingerprint
from heliostat.data.ingest.workspace import Workspace, ingest_id
from heliostat.data.manifest import DatasetManifest, check_dataset_name, read_head
from heliostat.data.sources import Source, open_source
from heliostat.errors import InvalidValueError, NoImagesError
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

__all__ = ["IngestOptions", "IngestProgress", "IngestResult", "Report", "ingest", "prepare"]


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an ingest did. ``images`` and ``size_bytes`` (of shards) are what it added, ``dataset_images`` is the sum.

    ``reasons`` counts the quarantined items of this source by reason, ``skipped`` the hidden files and companions,
    ``resumed`` the items that an earlier start of the same ingest had checked.
    """

    manifest_sha256: str
    images: int
    dataset_images: int
    duplicates: int
    quarantined: int
    reasons: dict[str, int]
    skipped: int
    resumed: int
    size_bytes: int
    duration_s: float


def prepare(
    source: str | Path, root: Store, name: str, *, labels: Path | None = None, allow_urls: bool = False
) -> Source:
    """Open a source and look at the dataset: all that can be found wrong before Ray starts and any image is read.

    Raises:
        InvalidValueError: the name cannot be that of a dataset, or is that of a selection.
        SourceNotFoundError, NoImagesError: the source is missing or holds nothing that may be an image.
        StorageError: the store does not cooperate.
    """
    check_dataset_name(name)
    opened = open_source(str(source), labels=labels, allow_urls=allow_urls)
    next(opened.units(), None)  # what is wrong with a source shows with its first unit
    head = read_head(root, name)
    if head and head.manifest.selection:
        raise InvalidValueError(
            f"the dataset {name!r} is a selection of rows of other datasets", "Ingest into a dataset of another name"
        )
    return opened


def ingest(
    source: str | Path | Source,
    root: Store,
    name: str,
    options: IngestOptions = DEFAULT_OPTIONS,
    *,
    report: Report = lambda progress: None,
) -> IngestResult:
    """Add the images of a source to a dataset, which is made if there is none.

    Ray must be initialised, and the source visible under the same path on all its nodes. Doing it again adds nothing
    and leaves the manifest as it is. An image that lies in folders of different labels has none, as far as one round
    (``IngestOptions.round_items``) sees them; one that the dataset has already, also from an earlier round of the same
    ingest, keeps the label it has.

    Raises:
        InvalidValueError: the name cannot be that of a dataset, or there is no such edit.
        SourceNotFoundError, NoImagesError: the source is missing or holds no usable image. Nothing is written.
        PluginFailedError: the edit failed on an image, which is named. What is checked stays checked.
        TooManyRefusedError: more than the allowed share of the source is refused. What is checked stays checked.
        StorageError: the source or the store does not cooperate. What is done stays done.
    """
    started = time.monotonic()
    opened = source if isinstance(source, Source) else prepare(source, root, name)
    edit = open_edit(options.edit).fingerprint if options.edit else None
    identity = ingest_id(opened.description, options.limits, options.resize_px, edit)
    workspace = Workspace(dataset_store(root, name).sub(f"ingests/{identity}"))
    job = Job(opened, root, name, workspace, options, report)
    done = _run_rounds(job)
    workspace.end()
    if not done.tally.usable or not done.manifest.rows:
        for part in done.unpublished:
            job.store.delete(part.key)
        raise _no_images(opened.description, done.tally)
    tally = done.tally
    return IngestResult(
        manifest_sha256=done.manifest.sha256,
        images=tally.images,
        dataset_images=done.manifest.rows,
        duplicates=tally.duplicates,
        quarantined=tally.quarantined,
        reasons=tally.reasons,
        skipped=tally.skipped,
        resumed=tally.resumed,
        size_bytes=tally.size_bytes,
        duration_s=time.monotonic() - started,
    )


def _run_rounds(job: Job) -> Published:
    """All rounds, those that an earlier start has finished excepted."""
    done = Published(DatasetManifest(name=job.name), Tally(), Tally())
    for index, units in enumerate(cut_rounds(job.source.units(), job.options.round_items)):
        fingerprint = round_fingerprint(units)
        note = job.workspace.load_round(index)
        head = read_head(job.root, job.name) if note else None
        published = head.manifest.sha256 if head else None
        if note and note.fingerprint == fingerprint and note.manifest_sha256 in (None, published):
            done = Published(
                head.manifest if head else done.manifest, done.tally + note.tally, note.tally, note.unpublished
            )
            continue
        done = RoundToPublish.of(job, index, fingerprint, *check_units(job, index, units, done.tally), done).publish()
        job.workspace.end_round(
            index, RoundNote(fingerprint=fingerprint, tally=done.of_round, unpublished=done.unpublished)
        )
    return done


def _no_images(source: str, tally: Tally) -> NoImagesError:
    return NoImagesError(
        f"none of the {tally.checked} files in {source!r} is a usable image {tally.in_words()}",
        "Give a source that holds JPEG, PNG or WebP files",
    )
