"""The nearest neighbours of many vectors among many, on a cluster: block by block, each kept when it is done.

The searched vectors lie in shards in the memory of Ray actors, none of them larger than it may be, one on each node at
least; where the cluster cannot hold all shards at once, they are searched in several passes. A block of queries asks
every shard, and of all their candidates those that a single shard would have named are compared exactly. So results do
not depend on the number of shards, blocks or workers; only which of equally near vectors stands at the end of a list
may.
"""

import hashlib
import heapq
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from heliostat.config.curate import SearchConfig
from heliostat.curation.columns import list_column
from heliostat.curation.image_maps import Report, Run
from heliostat.curation.index import Candidates, IndexPlan, SearchShard, all_threads, plan_index, train_index
from heliostat.curation.index import sample_size as wanted_sample
from heliostat.curation.kmeans import Ints, Vectors, sample_rows
from heliostat.curation.ray_points import RESTARTS
from heliostat.curation.similarity import LOWEST, NO_ROW, Similarities, best_of
from heliostat.curation.vectors import VectorPart, take_rows
from heliostat.data.ray_tasks import cluster_cpus
from heliostat.errors import InvalidValueError
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder

VERSION = "2"
"""Of the results: another one searches anew."""
_PROBES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_ASKING = 256
"""Vectors on which the recall of a number of probes is measured."""
_TUNE_ROWS = 2**17
"""Vectors among which they are looked for: a part of the base, the same however it is divided."""
_TRAINED, _CHOICE = "index.faiss", "probes.json"


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """Neighbours of some rows.

    Attributes:
        rows: (Q,) numbers in the universe.
        neighbours: (Q, K) the most similar first, ``NO_ROW`` where there are fewer.
        similarity: (Q, K), in units of ``similarity.UNIT``.
    """

    rows: Ints
    neighbours: Ints
    similarity: Similarities

    def to_arrow(self) -> pa.Table:
        """As it is stored."""
        near = {"neighbours": list_column(self.neighbours), "similarity": list_column(self.similarity)}
        return pa.table({"row": self.rows, **near})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "NeighbourTable":
        """From what ``to_arrow`` gave."""
        near = [table[name].combine_chunks().flatten().to_numpy() for name in ("neighbours", "similarity")]
        rows = table["row"].to_numpy()
        return cls(rows, near[0].reshape(len(rows), -1), near[1].reshape(len(rows), -1))


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has done: keys of its blocks in order, and how it was done.

    Attributes:
        folder: Where the blocks are.
        keys: Of ``NeighbourTable`` objects, in the order of the rows.
        plan: The index.
        probes: Lists that were looked into, 0 if every vector was compared.
        recall: Share of true neighbours found, measured on samples within shards; 1 if every vector was compared.
    """

    folder: ResultFolder
    keys: tuple[str, ...]
    plan: IndexPlan
    probes: int
    recall: float


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for what.

    Attributes:
        vectors: Where all vectors are.
        index: Where the trained index is kept, for all queries of one base.
        results: Where the results go.
        base: Vectors that are searched.
        queries: Vectors that ask.
        width: D.
        count: Neighbours of each; a vector is no neighbour of itself.
        seed: Everything random follows from it.
    """

    vectors: ResultFolder
    index: Store
    results: ResultFolder
    base: tuple[VectorPart, ...]
    queries: tuple[VectorPart, ...]
    width: int
    count: int
    seed: int


def _silent(done: int, total: int) -> None:
    pass


def find_neighbours(search: Search, config: SearchConfig, run: Run, report: Report = _silent) -> Found:
    """Search; blocks that are done already are not searched again. Ray must be initialised.

    Raises:
        InvalidValueError: no node has the memory or the GPUs that the configuration gives to a shard.
        CorruptResultError: vectors are damaged or gone.
        StorageError: the store does not cooperate. What is done stays done.
    """
    rows = sum(len(part.places) for part in search.base)
    plan = plan_index(rows, search.width, config.code, config.flat_rows)
    if not rows or not search.queries:
        return Found(search.results, (), plan, 0, 1.0)
    _train(search, plan, run)
    probes, recall = _probes(search, plan, config.recall, run) if plan.lists else (0, 1.0)
    shards = _interleaved(search.base, max(_nodes(), plan.shards(rows, int(config.shard_gib * 2**30))))
    gpus = config.gpus if plan.lists else 0.0
    fitting = _fitting(shards, plan, gpus)
    passes = [shards[first : first + fitting] for first in range(0, len(shards), fitting)]
    found: dict[str, str] = {}
    names = [_pass_name(passes, number) for number in range(len(passes))]
    for number, some in enumerate(passes):
        before = names[number - 1] if number else None
        of_pass = _Pass(search, names[number], before, is_last=number == len(passes) - 1)
        with _actors(search, plan, some, gpus) as actors:
            found = of_pass.carry_out(actors, probes, run, partial(_told, report, number, len(passes)))
    keys = tuple(found[_block_name(part, names[-1])] for part in search.queries)
    return Found(search.results, keys, plan, probes, recall)


def _told(report: Report, number: int, passes: int, done: int, total: int) -> None:
    report(number * total + done, passes * total)


def _pass_name(passes: Sequence[Sequence[Sequence[VectorPart]]], number: int) -> str:
    """Tells a pass from those of another division: a later start may find another cluster."""
    if len(passes) == 1:
        return "whole"
    division = json.dumps([[sorted(part.shard for shard in some for part in shard)] for some in passes])
    return f"pass-{number + 1}-of-{len(passes)}-{hashlib.sha256(division.encode()).hexdigest()[:16]}"


def _train(search: Search, plan: IndexPlan, run: Run) -> None:
    """Train the index, if nobody has: a later start searches with the same one."""
    if not plan.lists or search.index.exists(_TRAINED):
        return
    rows = sum(len(part.places) for part in search.base)
    chosen = sample_rows(rows, wanted_sample(plan), (search.seed, 0))
    sample = take_rows(search.base, search.vectors, chosen, run)
    search.index.put(_TRAINED, train_index(sample, plan, (search.seed, 1)))


def _probes(search: Search, plan: IndexPlan, wanted: float, run: Run) -> tuple[int, float]:
    """The fewest probes with which enough of the true neighbours are found, and how many are; decided once."""
    key = f"{search.count}-{wanted:g}-{_CHOICE}"
    if search.index.exists(key):
        probes, recall = json.loads(search.index.get(key))
        return int(probes), float(recall)
    rows = sum(len(part.places) for part in search.base)
    chosen = sample_rows(rows, _TUNE_ROWS, (search.seed, 3))
    with all_threads(os.cpu_count() or 1):
        sample = take_rows(search.base, search.vectors, chosen, run)
        shard = SearchShard(plan, search.index.get(_TRAINED), sample, np.arange(len(sample)))
        asking = sample_rows(len(sample), _ASKING, (search.seed, 2))
        for probes in _PROBES:
            recall = shard.recall(asking, search.count, probes)
            if recall >= wanted or probes >= plan.lists:
                break
    search.index.put(key, json.dumps([probes, recall]).encode())
    return probes, recall


def _interleaved(parts: Sequence[VectorPart], count: int) -> list[list[VectorPart]]:
    """Parts dealt out like cards: each shard holds some of everything, and about as much as the others."""
    dealt: list[tuple[int, int, list[VectorPart]]] = [(0, number, []) for number in range(min(count, len(parts)))]
    for part in sorted(parts, key=lambda each: -len(each.places)):
        rows, number, shard = dealt[0]
        shard.append(part)
        heapq.heapreplace(dealt, (rows + len(part.places), number, shard))
    by_number = sorted(dealt, key=lambda each: each[1])
    return [sorted(shard, key=lambda part: part.shard) for _, _, shard in by_number]


def _nodes() -> int:
    """Nodes that can compute."""
    return sum(1 for resources in _resources() if resources.get("CPU", 0.0) > 0)


def _resources() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(shards: Sequence[Sequence[VectorPart]], plan: IndexPlan, gpus: float) -> int:
    """Shards that the cluster holds at once.

    Raises:
        InvalidValueError: it holds none.
    """
    shard_bytes = plan.row_bytes * max(sum(len(part.places) for part in shard) for shard in shards)
    by_memory = sum(int(node.get("memory", 0.0) // shard_bytes) for node in _resources())
    if not by_memory:
        raise InvalidValueError(
            f"a shard of the index takes {shard_bytes / 2**30:.3g} GiB, and no node has so much memory for Ray",
            "Lower search.shard_gib, or add larger nodes",
        )
    holds = min(by_memory, cluster_cpus())
    if gpus:
        by_gpus = sum(int(node.get("GPU", 0.0) // gpus) for node in _resources())
        if not by_gpus:
            raise InvalidValueError(f"search.gpus is {gpus:g}, and no node has so many", "Set search.gpus=0")
        holds = min(holds, by_gpus)
    return min(len(shards), holds)


class _ShardActor:
    """A shard of the index, asked by several threads at once; each of them computes alone.

    Filled when it is first asked: an error of a constructor reaches nobody as what it is.
    """

    def __init__(
        self,
        vectors: ResultFolder,
        plan: IndexPlan,
        index: Store | None,
        parts: Sequence[VectorPart],
        threads: int,
        on_gpu: bool,
    ) -> None:
        self._content = vectors, plan, index, parts, threads, on_gpu
        self._filled: SearchShard | None = None
        self._lock = threading.Lock()

    def candidates(self, queries: Vectors, count: int, probes: int) -> Candidates:
        return self._shard().candidates(queries, count, probes)

    def _shard(self) -> SearchShard:
        with self._lock:
            if self._filled is None:
                vectors, plan, index, parts, threads, on_gpu = self._content
                loaded = np.concatenate([part.load(vectors) for part in parts])
                trained = None if index is None else index.get(_TRAINED)
                rows = np.concatenate([part.rows for part in parts])
                with all_threads(threads):
                    self._filled = SearchShard(plan, trained, loaded, rows, on_gpu=on_gpu)
            return self._filled


@contextmanager
def _actors(
    search: Search, plan: IndexPlan, shards: Sequence[Sequence[VectorPart]], gpus: float
) -> Iterator[tuple[Any, ...]]:
    import ray

    # Without CPUs of their own: they work while those who ask them wait, and on a single CPU both have to fit.
    remote = ray.remote(
        num_cpus=0, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS, scheduling_strategy="SPREAD"
    )
    threads = 1 if gpus else max(1, cluster_cpus() // len(shards))
    held = [ray.put(list(parts)) for parts in shards]  # an actor that is started again needs its arguments again
    started = [
        remote(_ShardActor)
        .options(memory=plan.row_bytes * sum(map(len, (part.places for part in parts))), max_concurrency=threads)
        .remote(search.vectors, plan, search.index if plan.lists else None, argument, threads, gpus > 0)
        for parts, argument in zip(shards, held, strict=True)
    ]
    try:
        yield tuple(started)
    finally:
        for actor in started:
            ray.kill(actor)


@dataclass(frozen=True, slots=True)
class _Pass:
    """All blocks of queries against some shards; what the pass before has found is merged with it."""

    search: Search
    name: str
    before: str | None
    is_last: bool

    def carry_out(self, actors: Sequence[Any], probes: int, run: Run, report: Report) -> dict[str, str]:
        """Keys of all results so far, by name."""
        found = self.search.results.found()
        queries = self.search.queries
        left = [place for place, part in enumerate(queries) if _block_name(part, self.name) not in found]
        total = sum(len(part.places) for part in queries)
        done = total - sum(len(queries[place].places) for place in left)
        report(done, total)
        task = _SearchBlock(self.search.vectors, self.search.results, self.search.count, probes, tuple(actors))
        for place, key in run(((place, self._payload(queries[place], found)) for place in left), task):
            found[_block_name(queries[place], self.name)] = key.decode()
            done += len(queries[place].places)
            report(done, total)
        return found

    def _payload(self, part: VectorPart, found: dict[str, str]) -> bytes:
        before = None if self.before is None else found[_block_name(part, self.before)]
        name = _block_name(part, self.name)
        header = json.dumps([part.shard, part.key, part.first, before, name, self.is_last])
        return header.encode() + b"\n" + part.places.tobytes()


@dataclass(frozen=True, slots=True)
class _SearchBlock:
    """A task: one block of queries. Small; what it works on comes with each payload."""

    vectors: ResultFolder
    results: ResultFolder
    count: int
    probes: int
    actors: tuple[Any, ...]

    def __call__(self, payload: bytes) -> bytes:
        """The key of the block."""
        import ray

        header, _, places = payload.partition(b"\n")
        shard, key, first, before, name, is_last = json.loads(header)
        part = VectorPart(shard, key, first, np.frombuffer(places, np.int64))
        queries = ray.put(part.load(self.vectors))
        best = None if before is None else Candidates.from_arrow(self.results.read(before))
        # One more than is wanted: a vector of the base finds itself.
        waiting = [actor.candidates.remote(queries, self.count + 1, self.probes) for actor in self.actors]
        while waiting:  # one at a time: together they are as large as there are shards
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            answer: Candidates = ray.get(ready)
            best = answer if best is None else best.merged(answer)
        if best is None:
            raise ValueError("there is nobody to ask")
        if not is_last:
            return self.results.write(name, best.to_arrow()).encode()
        others = best.rows_QC != part.rows[:, None]
        rows, near = np.where(others, best.rows_QC, NO_ROW), np.where(others, best.similarity_QC, LOWEST)
        return self.results.write(name, NeighbourTable(part.rows, *best_of(rows, near, self.count)).to_arrow()).encode()


def _block_name(part: VectorPart, of_pass: str) -> str:
    return f"{part.shard:08d}-{of_pass}"
