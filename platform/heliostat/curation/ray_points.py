"""Points of k-means in the memory of Ray actors, each with some shards' vectors.

The same chunks whatever the number of actors: a chunk never spans shards. An actor that dies is started again, reads
its vectors again, and what was asked of it is asked again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import InMemory, Ints, Points, R, Vectors
from heliostat.curation.vectors import VectorPart
from heliostat.storage.results import ResultFolder

RESTARTS = 100
"""Of an actor whose process or node went: more than a long curation on spot nodes sees, and not for ever."""


class _PointsActor:
    """Vectors of some parts, each part cut into chunks of its own; read when they are first asked for.

    Not before: an error of a constructor reaches nobody as what it is.
    """

    def __init__(self, folder: ResultFolder, parts: Sequence[VectorPart]) -> None:
        self._folder, self._parts = folder, parts
        self._loaded: list[InMemory] = []

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        results = (points.reduce(function, combine) for points in self._points())
        result = next(results)
        for other in results:  # one at a time: each is as large as all centroids
            result = combine(result, other)
        return result

    def map(self, function: Callable[[Vectors], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([points.map(function) for points in self._points()])

    def take(self, rows: Ints) -> Vectors:
        ends = np.cumsum([points.rows for points in self._points()])
        owners = np.searchsorted(ends, rows, side="right")
        starts = ends - [points.rows for points in self._points()]
        return np.concatenate(
            [self._loaded[owner].take(rows[owners == owner] - starts[owner]) for owner in np.unique(owners).tolist()]
        )

    def _points(self) -> list[InMemory]:
        if not self._loaded:
            self._loaded = [InMemory(part.load(self._folder)) for part in self._parts]
        return self._loaded


@dataclass(frozen=True, slots=True)
class RayPoints:
    """Points in the memory of actors; see ``Points``."""

    actors: tuple[Any, ...]
    ends: Ints
    """Number of the first point that each actor has no more."""

    @property
    def rows(self) -> int:
        """See ``Points``."""
        return int(self.ends[-1])

    def take(self, rows: Ints) -> Vectors:
        """See ``Points``."""
        import ray

        cuts = [0, *np.searchsorted(rows, self.ends).tolist()]
        starts = [0, *self.ends.tolist()]
        asked = [
            actor.take.remote(rows[first:last] - start)
            for actor, start, (first, last) in zip(self.actors, starts, pairwise(cuts), strict=False)
            if first < last
        ]
        return np.concatenate(ray.get(asked))

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        """See ``Points``."""
        import ray

        shared = ray.put(function)
        waiting = [actor.reduce.remote(shared, combine) for actor in self.actors]
        result: R | None = None
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            found: R = ray.get(ready)
            result = found if result is None else combine(result, found)
        if result is None:
            raise ValueError("there are no points")
        return result

    def map(self, function: Callable[[Vectors], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """See ``Points``."""
        import ray

        shared = ray.put(function)
        return np.concatenate(ray.get([actor.map.remote(shared) for actor in self.actors]))


@contextmanager
def ray_points(folder: ResultFolder, parts: Sequence[VectorPart], actors: int) -> Iterator[Points]:
    """Load parts into so many actors, or one per part if there are fewer; the actors end with the block."""
    import ray

    remote = ray.remote(num_cpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS, scheduling_strategy="SPREAD")
    shares = divide(parts, actors)
    held = [ray.put(some) for some in shares]  # an actor that is started again needs its arguments again
    started = [remote(_PointsActor).remote(folder, argument) for argument in held]
    ends = np.cumsum([sum(len(part.places) for part in some) for some in shares])
    try:
        yield RayPoints(tuple(started), ends)
    finally:
        for actor in started:
            ray.kill(actor)


def divide(parts: Sequence[VectorPart], count: int) -> list[list[VectorPart]]:
    """Consecutive parts for each of so many holders, of about equally many rows; no holder is without any."""
    ends = np.cumsum([len(part.places) for part in parts])
    owners = np.minimum((ends - 1) * count // ends[-1], count - 1)
    return [[parts[place] for place in np.flatnonzero(owners == owner).tolist()] for owner in np.unique(owners)]
