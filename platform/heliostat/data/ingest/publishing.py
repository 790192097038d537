"""The driver's side of the second pass: which images are new, which shards are left to pack, and the manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from heliostat import __version__
from heliostat.data.images import Reason
from heliostat.data.ingest.checked import Ids, extend_labels, images_of, refusals_of, unique_images, without_known
from heliostat.data.ingest.job import IngestProgress, Job
from heliostat.data.ingest.rounds import RoundNote, Tally
from heliostat.data.ingest.second_pass import ChangedItem, Packed, SecondPass, plan_round
from heliostat.data.manifest import DatasetManifest, Head, Provenance, QuarantinePart, Shard, read_head, write_manifest
from heliostat.data.quarantine import QuarantinedFile, write_quarantine
from heliostat.data.ray_tasks import run_tasks
from heliostat.data.shard_index import read_index
from heliostat.errors import ObjectExistsError, ObjectNotFoundError, VersionConflictError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight

_PUBLISH_ATTEMPTS = 5
"""How often a round begins its second pass anew because another ingest published first."""


@dataclass(frozen=True, slots=True)
class Published:
    """The dataset after a round, what all rounds and this one did, and lists of refused files in no manifest yet."""

    manifest: DatasetManifest
    tally: Tally
    of_round: Tally
    unpublished: tuple[QuarantinePart, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundToPublish:
    """A round whose items are checked: ``tally`` is what the check found, ``before`` what earlier rounds have done."""

    job: Job
    index: int
    fingerprint: str
    images: pa.Table
    refused: pa.Table
    tally: Tally
    before: Published

    @classmethod
    def of(
        cls, job: Job, index: int, fingerprint: str, checked: pa.Table, tally: Tally, before: Published
    ) -> "RoundToPublish":
        """A round from the rows of the first pass.

        Copies of an image are compared within it: with different labels they have none. What an earlier round has
        published keeps its label, whatever a later one finds.
        """
        return cls(job, index, fingerprint, unique_images(images_of(checked)), refusals_of(checked), tally, before)

    def publish(self) -> Published:
        """Add to the newest manifest; to a newer one if another ingest publishes meanwhile.

        Nothing is published before there is an image.
        """
        for _ in range(_PUBLISH_ATTEMPTS - 1):
            try:
                return self._publish_onto(read_head(self.job.root, self.job.name))
            except (VersionConflictError, ObjectExistsError):
                continue
        return self._publish_onto(read_head(self.job.root, self.job.name))

    def _publish_onto(self, base: Head | None) -> Published:
        old = base.manifest if base else DatasetManifest(name=self.job.name)
        new = without_known(self.images, _ids_of(self.job.store, old))
        labels = extend_labels(old.labels, pc.unique(new["label"]).to_pylist())
        shards, changed = self._pack(new, labels)
        tally = self.tally + _done(self.tally, shards, changed)
        known = tuple(dict.fromkeys((*old.quarantine, *self.before.unpublished)))
        part = write_quarantine(self.job.store, known, _quarantined(self.refused, changed))
        manifest = DatasetManifest(
            name=self.job.name,
            labels=labels if shards else old.labels,
            shards=(*old.shards, *shards),
            quarantine=(*known, part) if part else known,
        )
        after = self.before.tally + tally
        if not manifest.rows or not after.usable:
            unpublished = tuple(part for part in manifest.quarantine if part not in old.quarantine)
            return Published(old, after, tally, unpublished)
        if manifest != old:
            note = RoundNote(fingerprint=self.fingerprint, tally=tally, manifest_sha256=manifest.sha256, unpublished=())
            self.job.workspace.begin_publishing(self.index, note)  # this process may end right after the manifest
            write_manifest(self.job.root, manifest, self._provenance(base, tally), base)
        return Published(manifest, after, tally)

    def _pack(self, new: pa.Table, labels: Sequence[str]) -> tuple[list[Shard], list[ChangedItem]]:
        """The shards of new images in their order; those that an earlier start has packed are not packed again."""
        plans = {plan.name: plan for plan in plan_round(new, labels, self.job.options.layout)}
        packed = self._packed_before(list(plans))
        left = [name for name in plans if name not in packed]
        total = sum(len(plans[name].rows) for name in left)
        refused = self.before.tally.quarantined + self.tally.quarantined
        refused += sum(len(result.changed) for result in packed.values())
        done = 0
        if left:
            self.job.report(IngestProgress("store", 0, total, refused, self.index))
        task = SecondPass(self.job.store, self.job.workspace, self.job.options.limits)
        for index, record in run_tasks(((at, plans[name].to_bytes()) for at, name in enumerate(left)), task):
            result = packed[left[index]] = Packed.model_validate_json(record)
            done += len(plans[left[index]].rows)
            refused += len(result.changed)
            self.job.report(IngestProgress("store", done, total, refused, self.index))
        results = [packed[name] for name in plans]
        return [each.shard for each in results if each.shard], [item for each in results for item in each.changed]

    def _packed_before(self, plans: list[str]) -> dict[str, Packed]:
        records = self.job.workspace.load_packed(plans)
        packed = {name: Packed.model_validate_json(record) for name, record in records.items()}
        whole = map_in_flight(lambda item: (item[0], _is_whole(self.job.store, item[1].shard)), packed.items())
        return {name: packed[name] for name, is_whole in whole if is_whole}

    def _provenance(self, base: Head | None, tally: Tally) -> Provenance:
        return Provenance(
            source=self.job.source.description,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            heliostat_version=__version__,
            parent_sha256=base.manifest.sha256 if base else None,
            images_added=tally.images,
            duplicates=tally.duplicates,
        )


def _done(checked: Tally, shards: Sequence[Shard], changed: Sequence[ChangedItem]) -> Tally:
    """What packing adds to the tally of the check."""
    images = sum(shard.rows for shard in shards)
    return Tally(
        usable=-len(changed),
        images=images,
        duplicates=checked.usable - images - len(changed),
        size_bytes=sum(shard.size_bytes for shard in shards),
        reasons={Reason.CHANGED.value: len(changed)} if changed else {},
    )


def _ids_of(store: Store, manifest: DatasetManifest) -> Iterator[Ids]:
    """The ids of all rows, shard by shard."""
    for index in map_in_flight(lambda shard: read_index(store, shard), manifest.shards):
        yield np.ascontiguousarray(index["id"]).view("S32")


def _is_whole(store: Store, shard: Shard | None) -> bool:
    """Whether a shard that was uploaded is still there, at its size; its bytes are verified when they are read."""
    try:
        return shard is None or store.size(shard.key) == shard.size_bytes
    except ObjectNotFoundError:
        return False


def _quarantined(refused: pa.Table, changed: Sequence[ChangedItem]) -> Iterator[QuarantinedFile]:
    for batch in refused.select(["id", "source", "reason", "detail"]).to_batches(4096):
        for row in batch.to_pylist():
            name = row["id"] and row["id"].hex()
            yield QuarantinedFile(id=name, source=row["source"], reason=Reason(row["reason"]), detail=row["detail"])
    for item in changed:
        detail = "the file was changed or removed meanwhile"
        yield QuarantinedFile(id=item.id, source=item.source, reason=Reason.CHANGED, detail=detail)
