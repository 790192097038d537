"""What all stages of a curation share: its images, what has become of them so far, and where results are kept."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from heliostat.config.curate import CurateRecipe
from heliostat.curation.dedup import Bools
from heliostat.curation.fates import Fates
from heliostat.curation.image_maps import ImageMap, Run, map_images
from heliostat.curation.neighbours import VERSION, Found, Search, find_neighbours
from heliostat.curation.universe import Listing, Universe
from heliostat.curation.vectors import Embedded, VectorPart, embedded, usable_vectors
from heliostat.storage.results import ResultFolder

Watch = Callable[[str, int, int], None]
"""Told the stage, and how many of how many items are done."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a stage did, for the report.

    Attributes:
        name: Of the stage.
        before, after: Images of the pool that nothing was decided about.
        seconds: It took, results that were there already left out.
        details: Whatever else there is to tell.
    """

    name: str
    before: int
    after: int
    seconds: float
    details: dict[str, object] = field(default_factory=dict)


@dataclass
class Context:
    """See the module."""

    universe: Universe
    listing: Listing
    recipe: CurateRecipe
    fates: Fates
    run: Run
    watch: Watch
    records: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, object]]:
        """Record a stage; what is put into the dictionary is told too."""
        before, started = int(self.fates.alive.sum()), time.monotonic()
        details: dict[str, object] = {}
        yield details
        seconds = time.monotonic() - started
        self.records.append(StageRecord(name, before, int(self.fates.alive.sum()), round(seconds, 3), details))

    def embed(self, function: ImageMap, wanted: Bools, stage: str) -> Embedded:
        """Vectors of wanted rows, and maybe of others. Rows of the pool whose image cannot be read are left out."""
        results = map_images(
            self.universe, function, usable_vectors, wanted, self.run, partial(self.watch, f"{stage}: embedding")
        )
        found = embedded(self.universe, results)
        unreadable = np.flatnonzero(wanted & ~found.has_vector)
        self.fates.drop(stage, "unreadable", unreadable)
        return found

    def neighbours(self, vectors: Embedded, base: Bools, queries: Bools, count: int, stage: str) -> Found:
        """The nearest rows of the base to each query."""
        base_parts, query_parts = tuple(vectors.parts(base)), tuple(vectors.parts(queries))
        config, seed = self.recipe.search, self.recipe.seed
        index = digest("index", VERSION, part_contents(base_parts), config.code, config.flat_rows, seed)
        # What is found are numbers in this universe: another one with the same vectors has others.
        numbers = [[part.shard, part.first] for part in (*base_parts, *query_parts)]
        results = digest("neighbours", index, part_contents(query_parts), numbers, count, config.recall)
        kept = self.universe.root.sub("curation")
        folder = ResultFolder(kept.sub(f"neighbours/{results}"))
        search = Search(
            vectors.folder,
            kept.sub(f"indexes/{index}"),
            folder,
            base_parts,
            query_parts,
            vectors.width,
            count,
            seed,
        )
        return find_neighbours(search, config, self.run, partial(self.watch, f"{stage}: neighbours"))

    def rows_of(self, datasets: Sequence[str]) -> Bools:
        """Which rows belong to any of some datasets."""
        found = np.zeros(self.universe.rows, np.bool_)
        found[self.universe.rows_in(datasets)] = True
        return found


def digest(*content: object) -> str:
    """A name for what follows from some content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def part_contents(parts: Sequence[VectorPart]) -> list[object]:
    """What tells vectors apart: which shard's, by which embedding, and which rows."""
    return [[part.key, hashlib.sha256(part.places.tobytes()).hexdigest()] for part in parts]
