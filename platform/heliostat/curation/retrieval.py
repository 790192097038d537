"""Which images of the pool are taken because they resemble a set of good ones (DINOv2 paper, appendix A.4).

For a large set of query images, the nearest neighbours of each; for a small one, images of all clusters that enough of
its images fall into.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import Ints, Stream
from heliostat.curation.similarity import NO_ROW
from heliostat.data.draws import permutation


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Rows that are taken, ascending, for each the query that it was taken for, and how many there were before the cap.

    By clusters, the query is the first one that fell into the row's cluster.
    """

    rows: Ints
    queries: Ints
    before_cap: int


def by_sample(queries_Q: Ints, neighbours_QK: Ints, count: int, cap: int, stream: Stream) -> Retrieved:
    """The first neighbours of each query; what several have in common is taken once.

    Args:
        queries_Q: Rows of the queries.
        neighbours_QK: Rows of the pool, the most similar first.
        count: Neighbours that are taken of each; at most K.
        cap: How many are taken together at most; of more, some at random.
        stream: Everything random follows from it.
    """
    taken_QC = neighbours_QK[:, :count]
    there = taken_QC != NO_ROW
    queries = np.broadcast_to(queries_Q[:, None], taken_QC.shape)[there]
    rows, first = np.unique(taken_QC[there], return_index=True)
    return _capped(rows, queries[first], cap, stream)


def by_clusters(
    queries_Q: Ints,
    query_clusters_Q: npt.NDArray[np.integer],
    pool_N: Ints,
    pool_clusters_N: npt.NDArray[np.integer],
    *,
    min_hits: int,
    per_cluster: int,
    cap: int,
    stream: Stream,
) -> Retrieved:
    """Images of each cluster into which more than ``min_hits`` queries fall, at random.

    Args:
        queries_Q: Rows of the queries.
        query_clusters_Q: The cluster of each.
        pool_N: Rows of the pool, ascending.
        pool_clusters_N: The cluster of each.
        min_hits: A cluster is taken from if more queries than this fall into it.
        per_cluster: How many are taken of each, or all it has.
        cap: How many are taken together at most; of more, some at random.
        stream: Everything random follows from it.
    """
    clusters = 1 + int(max(query_clusters_Q.max(initial=0), pool_clusters_N.max(initial=0)))
    is_hit = np.bincount(query_clusters_Q, minlength=clusters) > min_hits
    places = np.flatnonzero(is_hit[pool_clusters_N])
    shuffled = places[permutation(len(places), stream[0], "retrieve.clusters", *stream[1:])]
    owners = pool_clusters_N[shuffled]
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=clusters)
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = np.sort(shuffled[order[within < per_cluster]])
    first_query = np.full(clusters, NO_ROW)
    first_query[query_clusters_Q[::-1]] = queries_Q[::-1]
    return _capped(pool_N[taken], first_query[pool_clusters_N[taken]], cap, stream)


def _capped(rows: Ints, queries: Ints, cap: int, stream: Stream) -> Retrieved:
    if len(rows) <= cap:
        return Retrieved(rows, queries, len(rows))
    kept = np.sort(permutation(len(rows), stream[0], "retrieve.cap", *stream[1:])[:cap])
    return Retrieved(rows[kept], queries[kept], len(rows))
