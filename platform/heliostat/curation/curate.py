"""A whole curation: from the recipe's pool to a dataset that refers to its rows, with the fate of every image.

Every stage keeps what it has computed under a name that follows from its input, so that a curation that was stopped, or
another one with the same beginning, goes on from there. What is decided about an image is a function of these results
and of the recipe alone.

``curations/<name>/fates/`` holds what became of each image, ``curations/<name>/result.json`` what each stage did.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from heliostat.config.curate import CurateRecipe
from heliostat.curation.balancing import Clustered, choose, cluster, embed_semantic, keep_all, open_semantic
from heliostat.curation.context import Context, StageRecord, Watch
from heliostat.curation.deduplication import drop_exact, drop_near, plan_dedup, take_as_is, taken_as_they_are
from heliostat.curation.embeddings import pinned_weights
from heliostat.curation.fates import Fates, hash_column
from heliostat.curation.filtering import apply_filter, sha256_of_list
from heliostat.curation.image_maps import Run
from heliostat.curation.universe import Universe
from heliostat.data.manifest import Part, load_manifest
from heliostat.data.ray_tasks import cluster_cpus
from heliostat.data.selection import write_selection
from heliostat.errors import ObjectNotFoundError
from heliostat.storage import Store
from heliostat.storage.layout import RESULT_KEY, curation_store
from heliostat.storage.results import ResultFolder

WEIGHTS, DEDUP_WEIGHTS = "embedding", "dedup.embedding"
READ = "read"


@dataclass(frozen=True, slots=True)
class Curated:
    """What a curation has made.

    Attributes:
        manifest_sha256: Of the dataset.
        images: In it.
        pool: Images that were looked at.
        cpus: Of the cluster that worked on it.
        records: What each stage did.
        reasons: Images by stage, reason, and whether it is one to keep them.
        inputs: See ``Pinned``.
    """

    manifest_sha256: str
    images: int
    pool: int
    cpus: int
    records: tuple[StageRecord, ...]
    reasons: dict[tuple[str, str, bool], int]
    inputs: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """As it is stored."""
        reasons = [{"stage": s, "reason": r, "kept": k, "images": n} for (s, r, k), n in self.reasons.items()]
        return {**asdict(self), "records": [asdict(each) for each in self.records], "reasons": reasons}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Curated":
        """From what ``to_json`` gave."""
        return cls(
            found["manifest_sha256"],
            found["images"],
            found["pool"],
            found["cpus"],
            tuple(StageRecord(**record) for record in found["records"]),
            {(each["stage"], each["reason"], each["kept"]): each["images"] for each in found["reasons"]},
            found["inputs"],
        )


@dataclass(frozen=True, slots=True)
class Stopped:
    """A curation that went as far as its recipe says.

    Attributes:
        until: The last stage.
        records: What each stage did.
    """

    until: str
    records: tuple[StageRecord, ...]


def fates_folder(root: Store, name: str) -> ResultFolder:
    """Where the fates of a curation are."""
    return ResultFolder(curation_store(root, name).sub("fates"))


def clusters_folder(root: Store, name: str) -> ResultFolder:
    """Where the clusters of a curation's pool are: by id, the cluster of every level."""
    return ResultFolder(curation_store(root, name).sub("clusters"))


def load_result(root: Store, name: str) -> Curated | None:
    """What a finished curation has made; none if it is not finished."""
    try:
        return Curated.from_json(json.loads(curation_store(root, name).get(RESULT_KEY)))
    except ObjectNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a recipe names and does not contain, as it was when the curation was first started.

    Attributes:
        manifests: Hashes by dataset.
        inputs: By key of the recipe: of an embedding by a backbone where its weights are, of a list its hash.
    """

    manifests: dict[str, str]
    inputs: dict[str, str]


def pin(root: Store, recipe: CurateRecipe) -> Pinned:
    """The newest manifests of all datasets of a recipe, the newest weights of its runs, and its lists.

    Raises:
        DatasetNotFoundError, SourceNotFoundError: one is not there.
        HeliostatError: see ``open_embedding``.
    """
    manifests = {name: load_manifest(root, name).sha256 for name in recipe.datasets}
    lists = {"filter.allow": recipe.filter.allow, "filter.deny": recipe.filter.deny}
    inputs: dict[str, str | None] = {key: sha256_of_list(path) for key, path in lists.items() if path is not None}
    inputs[DEDUP_WEIGHTS] = pinned_weights(recipe.dedup.embedding, root)
    inputs[WEIGHTS] = pinned_weights(recipe.embedding, root) if recipe.looks_at_content else None
    return Pinned(manifests, {key: value for key, value in inputs.items() if value is not None})


def curate(root: Store, recipe: CurateRecipe, pinned: Pinned, run: Run, watch: Watch) -> Curated | Stopped:
    """Carry out a recipe, as far as it says; what is there already is not done again. Ray must be initialised.

    Args:
        root: Where datasets are, and where the result goes.
        recipe: What to do.
        pinned: What ``pin`` gave when the curation was first started.
        run: Where the work on many items is done.
        watch: Told of the progress.

    Raises:
        DatasetNotFoundError, CorruptManifestError: a dataset is gone or damaged.
        InvalidValueError: an embedding or plug-in is not there, or has no threshold of its own.
        SelectionError: no image is left.
        CorruptResultError: something that an earlier start had computed is damaged.
        StorageError: the store does not cooperate. What is done stays done.
    """
    dedup = plan_dedup(root, recipe.dedup, pinned.inputs.get(DEDUP_WEIGHTS))
    semantic = open_semantic(root, recipe, pinned.inputs.get(WEIGHTS))
    parts = [Part(name=name, manifest_sha256=pinned.manifests[name]) for name in recipe.datasets]
    universe = Universe(root, parts)
    pool, concerned = (universe.rows_in(names) for names in (recipe.pool, [*taken_as_they_are(recipe), *recipe.pool]))
    context = Context(universe, universe.listing(), recipe, Fates(universe.rows, concerned), run, watch)
    take_as_is(context)
    with context.stage(READ) as details:
        context.fates.drop(READ, "its index is damaged or gone", np.flatnonzero(~context.listing.known))
        details["problems"] = list(context.listing.problems.values())
    drop_exact(context)
    sharpness = apply_filter(context, pinned.inputs)
    if recipe.until == "filter":
        return Stopped(recipe.until, tuple(context.records))
    if dedup is not None:
        drop_near(context, dedup, sharpness)
    if recipe.until == "dedup":
        return Stopped(recipe.until, tuple(context.records))
    clustered = None
    if semantic is None or not context.fates.alive.any():
        keep_all(context)
    else:
        vectors = embed_semantic(context, semantic)
        if recipe.until == "embed":
            return Stopped(recipe.until, tuple(context.records))
        clustered = cluster(context, vectors)
        if recipe.until == "cluster":
            return Stopped(recipe.until, tuple(context.records))
        choose(context, vectors, clustered)
    manifest_sha256, images = _publish(context)
    context.fates.write(universe, context.listing.ids, fates_folder(root, recipe.name))
    _write_clusters(context, clustered)
    curated = Curated(
        manifest_sha256,
        images,
        len(pool),
        cluster_cpus(),
        tuple(context.records),
        context.fates.counts(),
        pinned.inputs,
    )
    curation_store(root, recipe.name).put(RESULT_KEY, json.dumps(curated.to_json(), indent=1).encode())
    return curated


def _publish(context: Context) -> tuple[str, int]:
    """The dataset: everything that was kept."""
    recipe, universe = context.recipe, context.universe
    kept = np.flatnonzero(context.fates.kept)
    parts, rows = universe.place_of(kept)
    held, numbers = np.unique(parts, return_inverse=True)  # datasets that were only compared with are no part of it
    table = pa.table({"part": pa.array(numbers, pa.int16()), "row": rows, "reason": context.fates.reasons_of(kept)})
    sha256 = write_selection(universe.root, recipe.name, [universe.parts[part] for part in held], table)
    return sha256, len(rows)


def _write_clusters(context: Context, clustered: Clustered | None) -> None:
    """Which cluster of each level every image of the pool is in, for the report and for whoever looks later."""
    if clustered is None:
        return
    columns: dict[str, pa.Array] = {"id": hash_column(context.listing.ids[clustered.rows])}
    owners = np.arange(len(clustered.rows))
    for number, level in enumerate(clustered.levels):
        owners = level.assignment[owners]
        columns[f"level_{number}"] = pa.array(owners, pa.int32())
    clusters_folder(context.universe.root, context.recipe.name).write("assignment", pa.table(columns))
