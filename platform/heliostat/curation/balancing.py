"""Stages that look at what images show: clusters, retrieval of what resembles good sets, and a balanced sample."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from heliostat.config.curate import CurateRecipe, QuerySet
from heliostat.curation.columns import list_column
from heliostat.curation.context import Context, digest, part_contents
from heliostat.curation.dedup import Bools
from heliostat.curation.embeddings import open_embedding
from heliostat.curation.hierarchy import Level, LevelPlan, cluster_levels
from heliostat.curation.image_maps import ImageMap
from heliostat.curation.kmeans import VERSION, Floats, InMemory, Ints, assign
from heliostat.curation.neighbours import NeighbourTable
from heliostat.curation.ray_points import ray_points
from heliostat.curation.retrieval import Retrieved, by_clusters, by_sample
from heliostat.curation.sampling import sample_balanced
from heliostat.curation.vectors import Embedded, VectorPart
from heliostat.data.ray_tasks import cluster_cpus
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder

EMBED, CLUSTER, RETRIEVE, SAMPLE = "embedding", "clusters", "retrieval", "sample"
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Clustered:
    """Clusters of the pool.

    Attributes:
        rows: (N,) those that were clustered, ascending.
        levels: The finest first.
    """

    rows: Ints
    levels: list[Level]


def open_semantic(root: Store, recipe: CurateRecipe, weights_key: str | None = None) -> ImageMap | None:
    """The embedding of what images show; none if no stage needs it. ``weights_key`` as ``open_embedding``.

    Raises:
        HeliostatError: as ``open_embedding``.
    """
    if not recipe.looks_at_content:
        return None
    return open_embedding(recipe.embedding, root, weights_key)


def keep_all(context: Context) -> None:
    """Take everything that is left: nothing else was asked for."""
    context.fates.keep("all", "survived all stages", np.flatnonzero(context.fates.alive))


def embed_semantic(context: Context, function: ImageMap) -> Embedded:
    """Vectors of what is left of the pool, and of the sets whose like is wanted."""
    queries = context.rows_of([each.dataset for each in context.recipe.retrieve])
    with context.stage(EMBED) as details:
        details["embedding"] = function.name
        return context.embed(function, context.fates.alive | queries, EMBED)


def choose(context: Context, vectors: Embedded, clustered: Clustered | None) -> None:
    """Take what resembles the recipe's sets, and a balanced sample. Images that nothing asks for are left out."""
    recipe, pool = context.recipe, context.fates.alive
    for query_set in recipe.retrieve:
        _retrieve(context, vectors, pool, query_set, clustered)
    if recipe.sample is not None and clustered is not None:
        with context.stage(SAMPLE):
            chosen = clustered.rows[sample_balanced(clustered.levels, recipe.sample, recipe.seed)]
            context.fates.keep(SAMPLE, "balanced sample", chosen)
    context.fates.drop(SAMPLE if recipe.sample else RETRIEVE, "not chosen", np.flatnonzero(context.fates.alive))


def cluster(context: Context, vectors: Embedded) -> Clustered | None:
    """Clusters of what is left of the pool; none if nothing is, or if the recipe has no levels."""
    pool = context.fates.alive
    if not context.recipe.cluster.levels or not pool.any():
        return None
    config = context.recipe.cluster
    plans = [
        LevelPlan(each.clusters, each.resamplings, each.closest, config.rounds, config.starts) for each in config.levels
    ]
    parts = vectors.parts(pool)
    with context.stage(CLUSTER) as details:
        key = digest("clusters", VERSION, part_contents(parts), [repr(plan) for plan in plans], context.recipe.seed)
        kept = _KeptCentroids(ResultFolder(context.universe.root.sub(f"curation/clusters/{key}")))
        with ray_points(vectors.folder, parts, cluster_cpus()) as points:
            levels = cluster_levels(points, plans, context.recipe.seed, kept, partial(context.watch, CLUSTER))
        details |= {"clusters": [len(level.centroids_KD) for level in levels], "key": key}
    return Clustered(np.concatenate([part.rows for part in parts]), levels)


def _retrieve(
    context: Context, vectors: Embedded, pool: Bools, query_set: QuerySet, clustered: Clustered | None
) -> None:
    number = context.recipe.retrieve.index(query_set)
    stream = (context.recipe.seed, number)
    queries = context.rows_of([query_set.dataset])
    with context.stage(f"{RETRIEVE}: {query_set.dataset}") as details:
        if query_set.method == "sample" or clustered is None:
            found = _by_sample(context, vectors, pool, queries, query_set, stream)
        else:
            parts = vectors.parts(queries)
            owners = [_owners(part, vectors, clustered.levels[0].centroids_KD) for part in parts]
            found = by_clusters(
                np.concatenate([_NO_ROWS, *(part.rows for part in parts)]),
                np.concatenate([_NO_ROWS, *owners]),
                clustered.rows,
                clustered.levels[0].assignment,
                min_hits=query_set.min_hits,
                per_cluster=query_set.per_cluster,
                cap=query_set.cap,
                stream=stream,
            )
        context.fates.keep(RETRIEVE, f"retrieved for {query_set.dataset}", found.rows, found.queries)
        details |= {
            "method": query_set.method,
            "queries": int(queries.sum()),
            "unreadable queries": int((queries & ~vectors.has_vector).sum()),
            "retrieved": len(found.rows),
            "before_cap": found.before_cap,
        }


def _by_sample(
    context: Context, vectors: Embedded, pool: Bools, queries: Bools, query_set: QuerySet, stream: tuple[int, int]
) -> Retrieved:
    near = context.neighbours(vectors, pool, queries, query_set.neighbours, f"{RETRIEVE}: {query_set.dataset}")
    tables = [NeighbourTable.from_arrow(near.folder.read(key)) for key in near.keys]
    return by_sample(
        np.concatenate([_NO_ROWS, *(table.rows for table in tables)]),
        np.concatenate([np.empty((0, query_set.neighbours), np.int64), *(table.neighbours for table in tables)]),
        query_set.neighbours,
        query_set.cap,
        stream,
    )


def _owners(part: VectorPart, vectors: Embedded, centroids_KD: Floats) -> Ints:
    owners, _ = assign(InMemory(part.load(vectors.folder)), centroids_KD)
    return owners.astype(np.int64)


class _KeptCentroids:
    """Centroids of clusterings that are done, in a folder."""

    def __init__(self, folder: ResultFolder) -> None:
        self._folder = folder
        self._keys = folder.found()

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __getitem__(self, name: str) -> Floats:
        column = self._folder.read(self._keys[name])["centroid"].combine_chunks()
        return np.asarray(column.flatten().to_numpy(), np.float32).reshape(len(column), -1)

    def __setitem__(self, name: str, centroids_KD: Floats) -> None:
        self._keys[name] = self._folder.write(name, pa.table({"centroid": list_column(centroids_KD)}))
