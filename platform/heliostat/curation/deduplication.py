"""Stages that leave out copies: exact ones, near ones, of benchmarks, and of what an earlier curation has kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from heliostat.config.curate import CurateRecipe, DedupConfig
from heliostat.curation.context import Context
from heliostat.curation.dedup import exact_duplicates, near_duplicates, touching
from heliostat.curation.embeddings import open_embedding
from heliostat.curation.grouping import forests
from heliostat.curation.image_maps import ImageMap
from heliostat.curation.kmeans import Floats, Ints
from heliostat.curation.similarity import units_of
from heliostat.errors import CorruptShardError, InvalidValueError
from heliostat.storage import Store

AS_IS = "as is"
EXACT, NEAR, BENCHMARKS, EXISTING = "exact duplicates", "near-duplicates", "benchmarks", "existing"
_EXACT_REASON = "exact duplicate"


@dataclass(frozen=True, slots=True)
class DedupPlan:
    """What near-duplicates are found by; made before anything else is done, so that what is wrong shows at once."""

    function: ImageMap
    threshold: float
    benchmark_threshold: float
    """That of all others where there are no benchmarks."""


def plan_dedup(root: Store, config: DedupConfig, weights_key: str | None = None) -> DedupPlan | None:
    """The embedding and its thresholds; none if only exact copies are looked for. ``weights_key`` as for it.

    Raises:
        InvalidValueError: there is no such embedding, or nobody says from which similarity on two images are the same.
    """
    if config.embedding.source is None:
        return None
    function = open_embedding(config.embedding, root, weights_key)
    threshold = _threshold(function, config.threshold, "threshold")
    if not config.benchmarks:
        return DedupPlan(function, threshold, threshold)
    return DedupPlan(function, threshold, _threshold(function, config.benchmark_threshold, "benchmark_threshold"))


def taken_as_they_are(recipe: CurateRecipe) -> list[str]:
    """Datasets of which everything is part of the result."""
    return [*recipe.as_is, *([recipe.dedup.existing] if recipe.dedup.existing is not None else [])]


def take_as_is(context: Context) -> None:
    """Keep the images that no stage looks at, each once."""
    rows = _known_once(context, taken_as_they_are(context.recipe))
    context.fates.drop_duplicates(EXACT, _EXACT_REASON, exact_duplicates(context.listing.ids, rows))
    context.fates.keep(AS_IS, "taken as it is", rows)


def drop_exact(context: Context) -> None:
    """Leave out images whose bytes are there already: as they are, in an earlier curation, or earlier in the pool.

    First those that are images of a benchmark, byte for byte or the same row of a dataset that both are parts of.
    """
    recipe = context.recipe
    with context.stage(EXACT) as details:
        if recipe.dedup.benchmarks:
            details["as is, and of a benchmark"] = _drop_of_benchmarks(context)
        rows = _known_once(context, [*taken_as_they_are(recipe), *recipe.pool])
        context.fates.drop_duplicates(EXACT, _EXACT_REASON, exact_duplicates(context.listing.ids, rows))


def _drop_of_benchmarks(context: Context) -> int:
    """Leave out images of benchmarks by their ids; how many of them are taken as they are nevertheless."""
    recipe, fates = context.recipe, context.fates
    of_benchmarks = context.rows_of(recipe.dedup.benchmarks)
    if unknown := int((of_benchmarks & ~context.listing.known).sum()):
        raise _blind(recipe.dedup.benchmarks, unknown, next(iter(context.listing.problems.values())))
    themselves = np.flatnonzero(fates.alive & of_benchmarks)
    fates.drop(BENCHMARKS, _REASONS[BENCHMARKS], themselves, themselves)
    first = [*recipe.dedup.benchmarks, *taken_as_they_are(recipe), *recipe.pool]
    found = exact_duplicates(context.listing.ids, _known_once(context, first))
    same = of_benchmarks[found.because_of]
    fates.drop(BENCHMARKS, _REASONS[BENCHMARKS], found.rows[same], found.because_of[same])
    as_is = context.rows_of(taken_as_they_are(recipe))
    return int(as_is[found.rows[same]].sum() + (as_is & of_benchmarks).sum())


def _blind(datasets: Sequence[str], images: int, problem: str) -> CorruptShardError:
    return CorruptShardError(
        f"{images} images of {', '.join(datasets)} cannot be compared with the pool; the first: {problem}",
        "Repair or replace that dataset: what repeats its images could not be found",
    )


def drop_near(context: Context, plan: DedupPlan, sharpness: Floats) -> None:
    """Leave out all but one image of each component, and every component that touches what it must not.

    Raises:
        CorruptShardError: images of a benchmark or of the existing set cannot be read: nobody could say what repeats
            them.
    """
    recipe = context.recipe.dedup
    function, threshold = plan.function, plan.threshold
    against = [*recipe.benchmarks, *([recipe.existing] if recipe.existing is not None else [])]
    with context.stage(NEAR) as details:
        alive, references = context.fates.alive, context.rows_of(against)
        vectors = context.embed(function, alive | references, NEAR)
        if len(blind := np.flatnonzero(references & ~vectors.has_vector)):
            raise _blind(against, len(blind), vectors.problems[int(blind[0])])
        alive = context.fates.alive
        within = context.neighbours(vectors, alive, alive, recipe.neighbours, NEAR)
        pixels = context.listing.widths.astype(np.int64) * context.listing.heights
        pairs = forests(within, units_of(threshold), context.run)
        dropped = near_duplicates(context.universe.rows, pairs, alive, pixels, sharpness)
        context.fates.drop_duplicates(NEAR, "near-duplicate", dropped)
        details |= {
            "embedding": function.name,
            "threshold": threshold,
            "lists": within.plan.lists,
            "probes": within.probes,
            "recall": within.recall,
        }
    sets = [(BENCHMARKS, recipe.benchmarks, plan.benchmark_threshold)] if recipe.benchmarks else []
    if recipe.existing is not None:
        sets.append((EXISTING, (recipe.existing,), threshold))
    for stage, datasets, limit in sets:
        with context.stage(stage) as details:
            references = context.rows_of(datasets)
            towards = context.neighbours(vectors, alive, references & ~alive, recipe.neighbours, stage)
            pairs = chain(*(forests(found, units_of(limit), context.run) for found in (within, towards)))
            # Of all that was alive before near-duplicates went: a copy that stayed falls with one that went.
            dropped = touching(context.universe.rows, pairs, alive, np.flatnonzero(references))
            context.fates.drop_duplicates(stage, _REASONS[stage], dropped)
            details |= {"threshold": limit, "datasets": list(datasets), "touching": len(dropped.rows)}


_REASONS = {BENCHMARKS: "in a component with an image of a benchmark", EXISTING: "repeats an image of the existing set"}


def _threshold(function: ImageMap, given: float | None, name: str) -> float:
    found = given if given is not None else getattr(function, name, None)
    if found is None:
        raise InvalidValueError(
            f"dedup.{name} is null, and the embedding {function.name!r} has none of its own",
            f"Set dedup.{name}: what is more similar is the same image",
        )
    return float(found)


def _known_once(context: Context, datasets: Sequence[str]) -> Ints:
    """As ``Universe.rows_in``, without those whose index is damaged."""
    rows = context.universe.rows_in(datasets)
    return rows[context.listing.known[rows]]
