"""Nearest neighbours by faiss: which index for how many vectors, its training, and the search in one shard of it.

A large index has inverted lists of some hundred vectors each, and a graph that finds the lists of a query, so that the
cost of a query hardly grows (faiss: IVF with an HNSW quantiser); from 67 million vectors on lists become longer.
Vectors are held compressed for the search and as float16 beside that, from which the similarities of what was found are
computed exactly.

Legend of array suffixes: N vectors, Q queries, D width, C candidates, L lists.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from heliostat.curation.columns import list_column
from heliostat.curation.kmeans import Floats, InMemory, Ints, Stream, Vectors, kmeans, split_start
from heliostat.curation.similarity import LOWEST, NO_ROW, Similarities, best_of, exact_similarities
from heliostat.errors import InvalidValueError

Code = Literal["flat", "sq8", "rabitq", "pq"]

_ROWS_PER_LIST = 256
_MOST_LISTS = 2**18
"""What the lists are trained on is in the memory of one process: 8 GiB at a width of 384."""
_SAMPLE_PER_LIST = 40
_LIST_ROUNDS = 8
_SPLIT_FROM_LISTS = 64
_GRAPH_LINKS = 32
_PQ_WIDTH = 8
"""Dimensions that one byte of a product quantiser stands for."""
_SLACK: dict[Code, float] = {"flat": 1.0, "sq8": 1.0, "rabitq": 2.0, "pq": 3.0}
"""Candidates that are looked at exactly, for one that is wanted, less a few: what a code confuses."""
_LEAST_ROWS: dict[Code, int] = {"flat": 0, "sq8": 0, "rabitq": 0, "pq": 256 * 39}
"""Vectors below which a code cannot be trained; faiss wants 39 for each of the 256 values of a byte."""
_FEW = 16
_QUERY_ROWS = 1024
_EXACT_BASE_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How vectors are searched.

    Attributes:
        lists: Inverted lists of all shards; 0 compares every query with every vector.
        code: How vectors of lists are held.
        width: D.
    """

    lists: int
    code: Code
    width: int

    @property
    def row_bytes(self) -> int:
        """Host memory per vector of a shard."""
        if not self.lists:
            return self.width * (2 + 4) + 8
        match self.code:
            case "flat":
                code_bytes = 4 * self.width
            case "sq8":
                code_bytes = self.width
            case "rabitq":
                code_bytes = self.width // 8 + 8
            case "pq":
                code_bytes = _pq_bytes(self.width)
        return 2 * self.width + code_bytes + 8 + 8

    def shards(self, rows: int, shard_bytes: int) -> int:
        """Shards that so many vectors need, so that none is larger than it may be."""
        return max(1, -(-rows * self.row_bytes // shard_bytes))


def plan_index(rows: int, width: int, code: Code, flat_rows: int) -> IndexPlan:
    """The index for so many vectors; up to ``flat_rows`` of them, every one is compared."""
    if rows <= max(flat_rows, _LEAST_ROWS[code]):
        return IndexPlan(0, code, width)
    return IndexPlan(min(max(1, rows // _ROWS_PER_LIST), _MOST_LISTS), code, width)


def sample_size(plan: IndexPlan) -> int:
    """Vectors that training wants to see."""
    return max(plan.lists * _SAMPLE_PER_LIST, _LEAST_ROWS[plan.code])


def train_index(sample_ND: Vectors, plan: IndexPlan, stream: Stream) -> bytes:
    """An empty index of all lists, trained; ``SearchShard`` takes it.

    Args:
        sample_ND: Vectors of the whole, ``sample_size`` of them or all.
        plan: With lists.
        stream: Everything random follows from it.
    """
    faiss = _faiss()
    quantiser = faiss.IndexHNSWFlat(plan.width, _GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
    centroids_KD = _list_centroids(sample_ND, plan.lists, stream)
    with all_threads(1):  # several would link the graph in the order in which they happen to come
        quantiser.add(centroids_KD)
    index = _empty(plan, quantiser)
    index.train(sample_ND.astype(np.float32))
    return bytes(faiss.serialize_index(index).tobytes())


def _list_centroids(sample_ND: Vectors, lists: int, stream: Stream) -> Floats:
    choose = partial(_centroids, rounds=_LIST_ROUNDS)
    if lists < _SPLIT_FROM_LISTS:
        return choose(sample_ND, lists, stream)
    return split_start(sample_ND, lists, stream, choose)


def _centroids(sample_ND: Vectors, clusters: int, stream: Stream, rounds: int) -> Floats:
    return kmeans(InMemory(sample_ND), clusters, stream, rounds=rounds).centroids_KD


@contextmanager
def all_threads(count: int) -> Iterator[None]:
    """Faiss may use so many threads, called by this one; outside as many as before."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _empty(plan: IndexPlan, quantiser: Any) -> Any:
    faiss = _faiss()
    shape = (quantiser, plan.width, plan.lists)
    product = faiss.METRIC_INNER_PRODUCT
    if plan.code == "flat":
        return faiss.IndexIVFFlat(*shape, product)
    if plan.code == "sq8":
        return faiss.IndexIVFScalarQuantizer(*shape, faiss.ScalarQuantizer.QT_8bit, product)
    if plan.code == "rabitq":
        return faiss.IndexIVFRaBitQ(*shape, product)
    return faiss.IndexIVFPQ(*shape, _pq_bytes(plan.width), 8, product)


def _faiss() -> Any:
    import faiss  # takes its time; its stubs know half of it

    return faiss


def _pq_bytes(width: int) -> int:
    """The largest divisor of the width that gives each byte ``_PQ_WIDTH`` dimensions or more."""
    return max(parts for parts in range(1, max(2, width // _PQ_WIDTH + 1)) if width % parts == 0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be among the nearest of some queries.

    Attributes:
        rows_QC: Numbers of vectors, ``NO_ROW`` where there are fewer.
        coded_QC: Similarities by the code that the vectors are held in; float32.
        similarity_QC: The exact ones, in units of ``similarity.UNIT``.
    """

    rows_QC: Ints
    coded_QC: Floats
    similarity_QC: Similarities

    def merged(self, other: "Candidates") -> "Candidates":
        """Of both, as many as one has: those that come first by the code, as if one shard held all vectors."""
        names = ("rows_QC", "coded_QC", "similarity_QC")
        both = [np.concatenate([getattr(each, name) for each in (self, other)], axis=1) for name in names]
        first = np.lexsort((both[0], -both[1]), axis=1)[:, : self.rows_QC.shape[1]]
        return Candidates(*(np.take_along_axis(each, first, axis=1) for each in both))

    def to_arrow(self) -> pa.Table:
        """As it is stored between passes."""
        return pa.table({name: list_column(getattr(self, name)) for name in ("rows_QC", "coded_QC", "similarity_QC")})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "Candidates":
        """From what ``to_arrow`` gave."""
        columns = (table[name].combine_chunks().flatten().to_numpy() for name in table.column_names)
        return cls(*(column.reshape(len(table), -1) for column in columns))


class SearchShard:
    """Some of the vectors, ready to be searched, by several threads at once if it is not on a GPU.

    Args:
        plan: Of the whole index.
        trained: What ``train_index`` gave; without lists none.
        vectors_ND: The vectors.
        rows_N: Their numbers, which results are told in; ascending.
        on_gpu: Whether the lists are to be on this process's GPU.

    Raises:
        InvalidValueError: faiss cannot use a GPU here.
    """

    def __init__(
        self, plan: IndexPlan, trained: bytes | None, vectors_ND: Vectors, rows_N: Ints, *, on_gpu: bool = False
    ) -> None:
        self._plan = plan
        self._vectors_ND, self._rows_N = vectors_ND, rows_N
        self._index = _filled(trained, vectors_ND, on_gpu) if trained is not None else None
        self._floats_ND = vectors_ND.astype(np.float32) if trained is None else np.empty((0, plan.width), np.float32)

    def search(self, queries_QD: Vectors, count: int, probes: int) -> tuple[Ints, Similarities]:
        """The most similar vectors of each query, best first: their numbers and similarities, (Q, count) both.

        Arguments as of ``candidates``.
        """
        found = self.candidates(queries_QD, count, probes)
        return best_of(found.rows_QC, found.similarity_QC, count)

    def candidates(self, queries_QD: Vectors, count: int, probes: int) -> Candidates:
        """What may be among the most similar vectors of each query.

        Args:
            queries_QD: Unit vectors, one at least.
            count: How many of the most similar ones are wanted.
            probes: Lists that are looked into.
        """
        wanted = int(count * _SLACK[self._plan.code]) + _FEW
        parts = []
        for first in range(0, len(queries_QD), _QUERY_ROWS):
            queries = queries_QD[first : first + _QUERY_ROWS]
            places, coded = self._coded(queries, min(len(self._rows_N), wanted), probes)
            near = exact_similarities(queries, self._vectors_ND, places)
            rows = np.where(places == NO_ROW, NO_ROW, self._rows_N[np.maximum(places, 0)])
            short = ((0, 0), (0, wanted - places.shape[1]))
            parts.append(
                (
                    np.pad(rows, short, constant_values=NO_ROW),
                    np.pad(np.where(places == NO_ROW, -np.inf, coded), short, constant_values=-np.inf),
                    np.pad(near, short, constant_values=LOWEST),
                )
            )
        rows_QC, coded_QC, similarity_QC = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Candidates(rows_QC, coded_QC.astype(np.float32), similarity_QC)

    def recall(self, places: Ints, count: int, probes: int) -> float:
        """Share of the true neighbours within this shard that a search finds, over some of its own vectors.

        Args:
            places: Which vectors ask, by their place in the shard.
            count: Neighbours of each.
            probes: Lists that are looked into.
        """
        queries, own = self._vectors_ND[places], self._rows_N[places]
        found, _ = self.search(queries, count + 1, probes)
        true, _ = self._exact(queries, count + 1)
        hits = wanted = 0
        for mine, truth, itself in zip(found, true, own, strict=True):
            others = truth[(truth != NO_ROW) & (truth != itself)][:count]
            hits += len(np.intersect1d(mine, others))
            wanted += len(others)
        return hits / wanted if wanted else 1.0

    def _exact(self, queries_QD: Vectors, count: int) -> tuple[Ints, Similarities]:
        """The same, compared with every vector."""
        best = np.full((len(queries_QD), 0), NO_ROW), np.empty((len(queries_QD), 0), np.int16)
        for first in range(0, len(self._rows_N), _EXACT_BASE_ROWS):
            base_ND = self._vectors_ND[first : first + _EXACT_BASE_ROWS]
            candidates, _ = _nearest(queries_QD, base_ND.astype(np.float32), min(len(base_ND), count + _FEW))
            near = exact_similarities(queries_QD, base_ND, candidates)
            rows = self._rows_N[first + candidates]
            joined = np.concatenate([best[0], rows], axis=1), np.concatenate([best[1], near], axis=1)
            best = best_of(*joined, count)
        return best

    def _coded(self, queries_QD: Vectors, wanted: int, probes: int) -> tuple[Ints, Floats]:
        """Places in the shard and similarities by the code, (Q, wanted) both, in any order."""
        if self._index is None:
            return _nearest(queries_QD, self._floats_ND, wanted)
        faiss = _faiss()
        lists = min(probes, self._plan.lists)
        graph = faiss.SearchParametersHNSW(efSearch=max(64, 2 * lists))
        parameters = faiss.SearchParametersIVF(nprobe=lists, quantizer_params=graph)
        coded, found = self._index.search(queries_QD.astype(np.float32), wanted, params=parameters)
        return np.asarray(found, np.int64), np.asarray(coded, np.float32)


def _filled(trained: bytes, vectors_ND: Vectors, on_gpu: bool) -> Any:
    faiss = _faiss()
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    for first in range(0, len(vectors_ND), _EXACT_BASE_ROWS):
        index.add(vectors_ND[first : first + _EXACT_BASE_ROWS].astype(np.float32))
    if not on_gpu:
        return index
    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        raise InvalidValueError(
            "search.gpus is above 0, and faiss finds no GPU in a process that searches",
            "Install faiss-gpu on all nodes, or set search.gpus=0",
        )
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True
    options.allowCpuCoarseQuantizer = True
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


def _nearest(queries_QD: Vectors, floats_ND: Floats, wanted: int) -> tuple[Ints, Floats]:
    faiss = _faiss()
    near, found = faiss.knn(queries_QD.astype(np.float32), floats_ND, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(found, np.int64), np.asarray(near, np.float32)
