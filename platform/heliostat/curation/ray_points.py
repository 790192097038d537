"""Points of k-means in the memory of Ray actors, each with some shards' vectors.

The same chunks whatever the number of actors: a chunk never spans shards. An actor that dies is started again, reads
its vectors again, and what was asked of it is asked again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import InMemory, Ints, Points, R, Vectors
from heliostat.curation.results import ResultFolder
from heliostat.curation.vectors import VectorPart, take_rows


class _PointsActor:
    """Vectors of some parts, each part cut into chunks of its own."""

    def __init__(self, folder: ResultFolder, parts: Sequence[VectorPart]) -> None:
        self._points = [InMemory(part.load(folder)) for part in parts]

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        found = [points.reduce(function, combine) for points in self._points]
        result = found[0]
        for other in found[1:]:
            result = combine(result, other)
        return result

    def map(self, function: Callable[[Vectors], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([points.map(function) for points in self._points])


@dataclass(frozen=True, slots=True)
class RayPoints:
    """Points in the memory of actors; see ``Points``."""

    folder: ResultFolder
    parts: tuple[VectorPart, ...]
    actors: tuple[Any, ...]

    @property
    def rows(self) -> int:
        """See ``Points``."""
        return sum(len(part.places) for part in self.parts)

    def take(self, rows: Ints) -> Vectors:
        """See ``Points``."""
        return take_rows(self.parts, self.folder, rows)

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

    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
    held = [ray.put(some) for some in divide(parts, actors)]  # an actor that is started again needs its arguments again
    started = [remote(_PointsActor).remote(folder, argument) for argument in held]
    try:
        yield RayPoints(folder, tuple(parts), tuple(started))
    finally:
        for actor in started:
            ray.kill(actor)


def divide(parts: Sequence[VectorPart], count: int) -> list[list[VectorPart]]:
    """Consecutive parts for each of so many holders, of about equally many rows; no holder is without any."""
    ends = np.cumsum([len(part.places) for part in parts])
    owners = np.minimum((ends - 1) * count // ends[-1], count - 1)
    return [[parts[place] for place in np.flatnonzero(owners == owner).tolist()] for owner in np.unique(owners)]
