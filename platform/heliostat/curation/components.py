"""Connected components of a graph with more edges than fit into memory at once.

Every block of edges is reduced to a spanning forest of its own, wherever it lies; the forests together, one edge per
node and block at most, decide (issue 7; a union-find whose blocks are independent).
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Edges = npt.NDArray[np.int64]
"""Pairs of nodes, (E, 2)."""

_MERGED_EDGES = 2**24
"""Forests are merged when so many edges have come together (256 MiB), or twice as many as the last time left."""


def spanning_forest(edges_E2: Edges) -> Edges:
    """A subset of fewer edges with the same components: each node and the smallest node of its component."""
    nodes, places = np.unique(edges_E2, return_inverse=True)
    if not len(nodes):
        return np.empty((0, 2), np.int64)
    labels = _labels(places.reshape(-1, 2), len(nodes))
    roots: Ints = nodes[_smallest(labels)[labels]]
    forest: Edges = np.stack([roots, nodes], axis=1)[roots != nodes]
    return forest


def components(nodes: int, forests: Iterable[Edges]) -> Ints:
    """The smallest node of each node's component, (N,); a node without edges is its own.

    Holds 8 bytes per node and 256 MiB of edges, or twice as many edges as there are nodes if that is more.

    Args:
        nodes: How many.
        forests: Edges, in any order and any division.
    """
    held = [np.empty((0, 2), np.int64)]
    edges, limit = 0, _MERGED_EDGES
    for forest in forests:
        held.append(forest)
        edges += len(forest)
        if edges > limit:
            held = [spanning_forest(np.concatenate(held))]
            edges = len(held[0])
            limit = max(_MERGED_EDGES, 2 * edges)
    roots = np.arange(nodes)
    forest = spanning_forest(np.concatenate(held))
    roots[forest[:, 1]] = forest[:, 0]
    return roots


def _labels(edges: Edges, nodes: int) -> Ints:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, np.int64)


def _smallest(labels: Ints) -> Ints:
    """The first node of each label; nodes are numbered in ascending order."""
    _, first = np.unique(labels, return_index=True)
    return first
