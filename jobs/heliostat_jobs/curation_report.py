"""The report of a curation: what every stage left, what it took for the same, and how balanced the result is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from heliostat.config.curate import CurateRecipe
from heliostat.curation.curate import READ, Curated, clusters_folder, fates_folder
from heliostat.curation.deduplication import BENCHMARKS, EXACT, EXISTING, NEAR
from heliostat.curation.fates import Fate, read_fates
from heliostat.curation.filtering import STAGE as FILTER
from heliostat.curation.sampling import entropy_share
from heliostat.data.decode import decode_rgb
from heliostat.data.manifest import load_manifest
from heliostat.data.reading import RowReader
from heliostat.errors import CorruptShardError
from heliostat.observe.report import KeyNumber, Report
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
    places: dict[str, tuple[str, int]]
    """Dataset and row of each id."""

    def tiles(self, ids: Sequence[str]) -> list[NDArray[np.uint8]]:
        """Those that can be read, in order."""
        found = []
        for image_id in ids:
            if image_id not in self.places:
                continue
            dataset, row = self.places[image_id]
            manifest = load_manifest(self.root, dataset, self.manifests.get(dataset))
            try:
                (image,) = RowReader(self.root, manifest).read([row])["image"].to_pylist()
            except CorruptShardError:
                continue
            found.append(_tile(decode_rgb(image)))
        return found


def curation_report(root: Store, recipe: CurateRecipe, manifests: dict[str, str], curated: Curated) -> Report:
    """The whole report. Holds all fates in memory.

    Args:
        root: Where the curation is.
        recipe: Of the curation.
        manifests: Hashes of its datasets.
        curated: What it made.
    """
    fates = list(read_fates(fates_folder(root, recipe.name)))
    pictures = _Pictures(root, manifests, {fate.id: (fate.dataset, fate.row) for fate in fates})
    kept = sum(fate.is_kept for fate in fates)
    report = Report(
        f"Curation {recipe.name}",
        f"{curated.images:,} images, {kept:,} of them from a pool of {curated.pool:,}: {', '.join(recipe.pool)}",
    )
    _funnel(report, curated)
    _duplicates(report, fates, pictures)
    _contamination(report, recipe, fates, pictures)
    _clusters(report, root, recipe, fates, pictures)
    _sources(report, fates)
    _time(report, curated)
    return report


def _funnel(report: Report, curated: Curated) -> None:
    section = report.section("What every stage left")
    narrowing = [record for record in curated.records if record.name in _NARROWING]
    chosen = sum(images for (_, _, kept), images in curated.reasons.items() if kept)
    left = [("pool", curated.pool), *((record.name, record.after) for record in narrowing), ("taken", chosen)]
    section.figure(funnel(left), "Images that were left after each stage, and those that were taken in the end.")
    rows = [
        (stage, reason, "taken" if kept else "left out", f"{images:,}", f"{images / max(1, curated.pool):.2%}")
        for (stage, reason, kept), images in curated.reasons.items()
        if images
    ]
    section.table(("stage", "reason", "", "images", "of the pool"), rows)


def _duplicates(report: Report, fates: Sequence[Fate], pictures: _Pictures) -> None:
    groups: dict[str, list[str]] = {}
    for fate in fates:
        if fate.stage == NEAR and fate.because_of is not None:
            groups.setdefault(fate.because_of, []).append(fate.id)
    section = report.section("Near-duplicates")
    if not groups:
        section.text("None were found.")
        return
    sizes = Counter(1 + len(copies) for copies in groups.values())
    largest = sorted(groups.items(), key=lambda each: (-len(each[1]), each[0]))[:_GROUPS]
    section.numbers(
        KeyNumber("groups", f"{len(groups):,}"),
        KeyNumber("images left out", f"{sum(map(len, groups.values())):,}"),
        KeyNumber("largest group", f"{max(sizes):,}"),
    )
    rows = [pictures.tiles([keeper, *copies[: _PER_GROUP - 1]]) for keeper, copies in largest]
    titles = [f"{1 + len(copies):,} images; kept {keeper[:12]}" for keeper, copies in largest]
    section.figure(picture_rows(rows, titles), "The largest groups; the first picture of each stayed.")
    pairs = [image for keeper, copies in sorted(groups.items()) if len(copies) == 1 for image in (keeper, *copies)]
    if pairs:
        rows = [pictures.tiles(pairs[first : first + _PER_GROUP]) for first in (0, _PER_GROUP) if pairs[first:]]
        section.figure(picture_rows(rows, [""] * len(rows)), "Some pairs: the first of each stayed.")


def _contamination(report: Report, recipe: CurateRecipe, fates: Sequence[Fate], pictures: _Pictures) -> None:
    if not recipe.dedup.benchmarks:
        return
    section = report.section("Images of benchmarks")
    found = [fate for fate in fates if fate.stage == BENCHMARKS]
    section.text(
        f"{len(found):,} images of the pool were left out because their component touches an image of "
        f"{', '.join(recipe.dedup.benchmarks)}; {len({fate.because_of for fate in found}):,} images of these sets were "
        "touched."
    )
    if found:
        tiles = pictures.tiles([fate.id for fate in found[:_PER_SHEET]])
        section.figure(picture_rows([tiles], ["left out"]), "Some of them.")


def _clusters(report: Report, root: Store, recipe: CurateRecipe, fates: Sequence[Fate], pictures: _Pictures) -> None:
    folder = clusters_folder(root, recipe.name)
    keys = folder.found()
    if not keys:
        return
    table = folder.read(keys["assignment"])
    section = report.section("Clusters and balance")
    kept = {fate.id for fate in fates if fate.is_kept}
    ids = [each.hex() for each in table["id"].to_pylist()]
    finest = table["level_0"].to_numpy().astype(np.int64)
    is_kept = np.array([each in kept for each in ids])
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
        rows.append(pictures.tiles([ids[member] for member in shown.tolist()]))
        titles.append(f"cluster {cluster}: {sizes['before'][cluster]:,} images, {sizes['after'][cluster]:,} taken")
    section.figure(picture_rows(rows, titles), "Some images of the largest clusters.")


def _sources(report: Report, fates: Sequence[Fate]) -> None:
    section = report.section("Where images come from")
    pool = Counter(fate.dataset for fate in fates)
    kept = Counter(fate.dataset for fate in fates if fate.is_kept)
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
    section.table(("dataset", "in the pool", "taken", "of the dataset", "of what was taken"), rows)


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
