"""Whether an image that somebody holds in hand is in a curated dataset: itself, or a copy of it."""

from dataclasses import dataclass

import numpy as np

from heliostat.config.curate import CurateRecipe
from heliostat.curation.columns import vectors_of
from heliostat.curation.curate import DEDUP_WEIGHTS, Curated
from heliostat.curation.deduplication import plan_dedup
from heliostat.curation.image_maps import decode_small, results_folder, stored_results
from heliostat.curation.kmeans import Ints, Vectors
from heliostat.curation.similarity import UNIT, exact_similarities, units_of
from heliostat.curation.universe import Universe
from heliostat.curation.vectors import VECTOR
from heliostat.data.manifest import Part
from heliostat.errors import InvalidValueError
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder


@dataclass(frozen=True, slots=True)
class Nearest:
    """The image of a curated dataset that is most like another one.

    Attributes:
        id: Of the image; none if none could be compared.
        similarity: Cosine of the two, by the embedding of the deduplication.
        threshold: From which on two images are the same one.
        compared: Images that were compared.
        images: Of the dataset. Those that were taken as they are may never have been embedded.
    """

    id: str | None
    similarity: float
    threshold: float
    compared: int
    images: int

    @property
    def is_copy(self) -> bool:
        """Whether the two are the same image."""
        return self.id is not None and round(self.similarity * UNIT) >= units_of(self.threshold)


def find_nearest(root: Store, recipe: CurateRecipe, curated: Curated, image: bytes) -> Nearest:
    """Compare an image with all of a curated dataset, shard by shard.

    Args:
        root: Where the dataset is.
        recipe: Of the curation.
        curated: What it made.
        image: A file's content.

    Raises:
        InvalidValueError: the curation knows no copies but exact ones.
        RejectedImageError: the bytes are no image.
        CorruptResultError: embeddings of the dataset are damaged.
        HeliostatError: as ``plan_dedup``.
    """
    plan = plan_dedup(root, recipe.dedup, curated.inputs.get(DEDUP_WEIGHTS))
    if plan is None:
        raise InvalidValueError(
            f"the curation {recipe.name!r} looked for exact copies only: dedup.embedding.source is null",
            "Ask without --near",
        )
    computed = plan.function.open()([decode_small(image, plan.function.short_side_px)])
    query = vectors_of(computed[VECTOR])
    universe = Universe(root, [Part(name=recipe.name, manifest_sha256=curated.manifest_sha256)])
    rows = np.sort(universe.rows_of(recipe.name))
    folder = results_folder(root, plan.function)
    keys = stored_results(folder)
    best, best_shard, best_place, compared = -1.0, universe.shards[0], -1, 0
    for shard in universe.shards:
        first, last = np.searchsorted(rows, [shard.first, shard.first + shard.rows]).tolist()
        key, _ = keys.get(shard.name, (None, 0))
        if first == last or key is None:
            continue
        place, similarity, usable = _most_similar(folder, key, rows[first:last] - shard.first, query)
        compared += usable
        if usable and similarity > best:
            best, best_shard, best_place = similarity, shard, place
    found = universe.ids_of(best_shard)[best_place].tobytes().hex() if compared else None
    return Nearest(found, best, plan.threshold, compared, len(rows))


def _most_similar(folder: ResultFolder, key: str, places: Ints, query: Vectors) -> tuple[int, float, int]:
    """Place and similarity of the most similar of some rows of a shard, and how many of them have a vector."""
    column = folder.read(key, [VECTOR])[VECTOR].take(places)
    places = places[column.is_valid().to_numpy()]
    if not len(places):
        return -1, -1.0, 0
    vectors = vectors_of(column.drop_null())
    near = exact_similarities(query, vectors, np.arange(len(vectors))[None])[0]
    return int(places[near.argmax()]), float(near.max()) / UNIT, len(places)
