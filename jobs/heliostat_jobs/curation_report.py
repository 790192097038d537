"""The report of a curation: what every stage left, what it took for the same, and how balanced the result is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from heliostat.config.curate import CurateRecipe
from heliostat.curation.curate import READ, Curated, clusters_folder, fates_folder
from heliostat.curation.deduplication import AS_IS, BENCHMARKS, EXACT, EXISTING, NEAR
from heliostat.curation.fates import read_fates
from heliostat.curation.filtering import STAGE as FILTER
from heliostat.curation.sampling import entropy_share
from heliostat.data.decode import decode_rgb
from heliostat.data.manifest import load_manifest
from heliostat.data.reading import RowReader
from heliostat.errors import CorruptShardError
from heliostat.observe.report import KeyNumber, Report, Section
from heliostat.observe.status import duration
from heliostat.storage import Store
from heliostat_evaluation.curation_charts import funnel, picture_rows, sizes_of_clusters

_TILE_PX = 112
_GROUPS, _PER_GROUP = 8, 8
_SHEETS, _PER_SHEET = 8, 8
_SEED = 0
_NARROWING = (READ, EXACT, FILTER, NEAR, BENCHMARKS, EXISTING)
"""Stages that leave out; those after them choose."""


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Images of a curation by id, made small."""

    root: Store
    manifests: dict[str, str]
    fates: pa.Table

    def tiles(self, ids: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        """Those that can be read, in order."""
        here = self.fates.filter(pc.is_in(self.fates["id"], pa.array(ids, pa.binary(32))))
        places = {row["id"]: (row["dataset"], row["row"]) for row in here.to_pylist()}
        found = []
        for dataset, row in (places[each] for each in ids if each in places):
            manifest = load_manifest(self.root, dataset, self.manifests.get(dataset))
            try:
                (image,) = RowReader(self.root, manifest).read([row])["image"].to_pylist()
            except CorruptShardError:
                continue
            found.append(_tile(decode_rgb(image)))
        return found


def curation_report(root: Store, recipe: CurateRecipe, manifests: dict[str, str], curated: Curated) -> Report:
    """The whole report. Holds all fates in memory, a hundred bytes per image.

    Args:
        root: Where the curation is.
        recipe: Of the curation.
        manifests: Hashes of its datasets.
        curated: What it made.
    """
    fates = read_fates(fates_folder(root, recipe.name))
    pictures = _Pictures(root, manifests, fates)
    chosen = sum(images for (stage, _, kept), images in curated.reasons.items() if kept and stage != AS_IS)
    report = Report(
        f"Curation {recipe.name}",
        f"{curated.images:,} images, {chosen:,} of them from a pool of {curated.pool:,}: {', '.join(recipe.pool)}",
    )
    _funnel(report, curated, chosen)
    _duplicates(report, fates, pictures)
    _contamination(report, recipe, fates, pictures)
    _clusters(report, root, recipe, fates, pictures)
    _sources(report, fates)
    _time(report, curated)
    return report


def _funnel(report: Report, curated: Curated, chosen: int) -> None:
    section = report.section("What every stage left")
    narrowing = [record for record in curated.records if record.name in _NARROWING]
    left = [("pool", curated.pool), *((record.name, record.after) for record in narrowing), ("taken", chosen)]
    section.figure(funnel(left), "Images that were left after each stage, and those that were taken in the end.")
    rows = [
        (stage, reason, "taken" if kept else "left out", f"{images:,}", f"{images / max(1, curated.pool):.2%}")
        for (stage, reason, kept), images in curated.reasons.items()
        if images
    ]
    section.table(("stage", "reason", "", "images", "of the pool"), rows)


def _duplicates(report: Report, fates: pa.Table, pictures: _Pictures) -> None:
    copies = fates.filter(pc.and_(pc.equal(fates["stage"], NEAR), pc.is_valid(fates["because_of"])))
    section = report.section("Near-duplicates")
    if not len(copies):
        section.text("None were found.")
        return
    groups = copies.group_by("because_of").aggregate([("id", "count")])
    groups = groups.sort_by([("id_count", "descending"), ("because_of", "ascending")])
    section.numbers(
        KeyNumber("groups", f"{len(groups):,}"),
        KeyNumber("images left out", f"{len(copies):,}"),
        KeyNumber("largest group", f"{1 + groups['id_count'][0].as_py():,}"),
    )
    largest = groups.filter(pc.greater(groups["id_count"], 1)).slice(0, _GROUPS).to_pylist()
    rows = [pictures.tiles([group["because_of"], *_copies_of(copies, group, _PER_GROUP - 1)]) for group in largest]
    titles = [f"{1 + group['id_count']:,} images; kept {group['because_of'].hex()[:12]}" for group in largest]
    _show(section, rows, titles, "The largest groups; the first picture of each stayed.")
    pairs = groups.filter(pc.equal(groups["id_count"], 1)).slice(0, _PER_GROUP).to_pylist()
    if pairs:
        shown = [image for pair in pairs for image in (pair["because_of"], *_copies_of(copies, pair, 1))]
        rows = [pictures.tiles(shown[first : first + _PER_GROUP]) for first in range(0, len(shown), _PER_GROUP)]
        _show(section, rows, [""] * len(rows), "Some pairs: the first of each stayed.")


def _show(section: Section, rows: list[list[NDArray[np.uint8]]], titles: list[str], caption: str) -> None:
    """Rows of pictures; those of which no picture can be read are left out."""
    shown = [(row, title) for row, title in zip(rows, titles, strict=True) if row]
    if shown:
        section.figure(picture_rows([row for row, _ in shown], [title for _, title in shown]), caption)


def _copies_of(copies: pa.Table, group: dict[str, Any], most: int) -> list[bytes]:
    wanted = pa.scalar(group["because_of"], pa.binary(32))
    found: list[bytes] = copies.filter(pc.equal(copies["because_of"], wanted))["id"].slice(0, most).to_pylist()
    return found


def _contamination(report: Report, recipe: CurateRecipe, fates: pa.Table, pictures: _Pictures) -> None:
    if not recipe.dedup.benchmarks:
        return
    section = report.section("Images of benchmarks")
    found = fates.filter(pc.equal(fates["stage"], BENCHMARKS))
    section.text(
        f"{len(found):,} images of the pool were left out because their component touches an image of "
        f"{', '.join(recipe.dedup.benchmarks)}; {pc.count_distinct(found['because_of']).as_py():,} images of these "
        "sets were touched."
    )
    if len(found):
        tiles = pictures.tiles(found["id"].slice(0, _PER_SHEET).to_pylist())
        _show(section, [tiles], ["left out"], "Some of them.")


def _clusters(report: Report, root: Store, recipe: CurateRecipe, fates: pa.Table, pictures: _Pictures) -> None:
    folder = clusters_folder(root, recipe.name)
    keys = folder.found()
    if not keys:
        return
    table = folder.read(keys["assignment"])
    section = report.section("Clusters and balance")
    kept = fates.filter(fates["is_kept"])["id"].combine_chunks()
    finest = table["level_0"].to_numpy().astype(np.int64)
    is_kept = pc.is_in(table["id"], kept).to_numpy()
    clusters = int(finest.max()) + 1
    before, after = finest, finest[is_kept]
    sizes = {name: np.bincount(owners, minlength=clusters) for name, owners in (("before", before), ("after", after))}
    section.numbers(
        KeyNumber("clusters", f"{clusters:,}"),
        KeyNumber("balance before", f"{entropy_share(before, clusters):.3f}", "entropy, 1 is all equal"),
        KeyNumber("balance after", f"{entropy_share(after, clusters):.3f}"),
    )
    section.figure(sizes_of_clusters(sizes), "How many of the images are in how many of the clusters.")
    largest = np.argsort(-sizes["before"], kind="stable")[:_SHEETS]
    rng = np.random.default_rng(_SEED)
    rows, titles = [], []
    for cluster in largest.tolist():
        members = np.flatnonzero(finest == cluster)
        shown = rng.choice(members, min(_PER_SHEET, len(members)), replace=False)
        rows.append(pictures.tiles(table["id"].take(shown).to_pylist()))
        titles.append(f"cluster {cluster}: {sizes['before'][cluster]:,} images, {sizes['after'][cluster]:,} taken")
    _show(section, rows, titles, "Some images of the largest clusters.")


def _sources(report: Report, fates: pa.Table) -> None:
    section = report.section("Where images come from")
    pool, kept = (_counts(each["dataset"]) for each in (fates, fates.filter(fates["is_kept"])))
    rows = [
        (
            name,
            f"{images:,}",
            f"{kept[name]:,}",
            f"{kept[name] / images:.1%}",
            f"{kept[name] / max(1, kept.total()):.1%}",
        )
        for name, images in pool.most_common()
    ]
    section.table(("dataset", "images", "taken", "of the dataset", "of what was taken"), rows)


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({each["values"]: each["counts"] for each in pc.value_counts(column).to_pylist()})


def _time(report: Report, curated: Curated) -> None:
    section = report.section("Time and cost")
    rows = [
        (
            record.name,
            duration(record.seconds),
            f"{record.seconds * curated.cpus / 3600:.3f}",
            f"{record.before:,}",
            _details(record.details),
        )
        for record in curated.records
    ]
    total = sum(record.seconds for record in curated.records)
    rows.append(("together", duration(total), f"{total * curated.cpus / 3600:.3f}", "", ""))
    section.table(
        ("stage", "time", "CPU hours", "images", "details"),
        rows,
        f"On {curated.cpus:g} CPUs. What an earlier start or another curation had computed took no time again.",
    )


def _details(details: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in details.items() if value not in ([], None, ""))


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A square with the whole image in it, on white."""
    height, width = image.shape[:2]
    scale = _TILE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tile = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
    top, left = (_TILE_PX - size[1]) // 2, (_TILE_PX - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = small
    return tile
