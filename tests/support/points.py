"""Unit vectors as embeddings are: in clumps, and on a surface of few dimensions."""

import numpy as np
import pyarrow as pa

from heliostat.curation.columns import vector_column
from heliostat.curation.kmeans import Vectors, normalised
from heliostat.curation.vectors import VECTOR, VectorPart
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder


def blobs(rows: int, width: int, centres: int, seed: int = 0, noise: float = 0.05) -> Vectors:
    """Clumps of equal weight, (rows, width); ``noise`` is the distance from their centres."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, width))
    points = means[rng.integers(centres, size=rows)] + noise * rng.normal(size=(rows, width)) * np.sqrt(width)
    return normalised(points).astype(np.float16)


def surface(rows: int, width: int, seed: int = 0, dimensions: int = 10, clumps: int = 50) -> Vectors:
    """Clumps of uneven weight on a curved surface of few dimensions, with a little noise around it: (rows, width).

    The same surface for every number of rows, so that what is near becomes nearer as there is more.
    """
    shape = np.random.default_rng(0)
    means = shape.normal(size=(clumps, dimensions))
    weights = shape.dirichlet(np.full(clumps, 0.7))
    first = shape.normal(size=(dimensions, 64)) / np.sqrt(dimensions)
    second = shape.normal(size=(64, width)) / 8
    rng = np.random.default_rng((seed, 1))
    found = np.empty((rows, width), np.float16)
    for start in range(0, rows, 65536):
        some = min(65536, rows - start)
        latent = means[rng.choice(clumps, some, p=weights)] + 0.6 * rng.normal(size=(some, dimensions))
        points = np.tanh(1.5 * latent @ first) @ second + 0.02 * rng.normal(size=(some, width))
        found[start : start + some] = normalised(points)
    return found


def stored(root: Store, vectors: Vectors, part_rows: int) -> tuple[ResultFolder, tuple[VectorPart, ...]]:
    """Vectors as an embedding leaves them, so many in each part."""
    folder = ResultFolder(root.sub("vectors"))
    parts = []
    for shard, first in enumerate(range(0, len(vectors), part_rows)):
        some = vectors[first : first + part_rows]
        key = folder.write(f"{shard:06d}", pa.table({VECTOR: vector_column(some)}))
        parts.append(VectorPart(shard, key, first, np.arange(len(some))))
    return folder, tuple(parts)
