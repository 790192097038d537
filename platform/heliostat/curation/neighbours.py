"""The nearest neighbours of many vectors among many, on a cluster: block by block, each kept when it is done.

The searched vectors lie in shards in the memory of Ray actors, none of them larger than it may be, one on each node at
least; where the cluster cannot hold all shards at once, they are searched in several passes. A block of queries asks
every shard and keeps the best of all. Results do not depend on the number of shards, blocks or workers: all shards
share one trained index, and similarities are exact.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from heliostat.config.curate import SearchConfig
from heliostat.curation.image_maps import Report, Run
from heliostat.curation.index import IndexPlan, SearchShard, all_threads, plan_index, sample_size, train_index
from heliostat.curation.kmeans import Ints, sample_rows
from heliostat.curation.results import ResultFolder
from heliostat.curation.similarity import LOWEST, NO_ROW, Similarities, best_of
from heliostat.curation.vectors import VectorPart, take_rows
from heliostat.data.ray_tasks import cluster_cpus
from heliostat.storage import Store

_PROBES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_ASKING = 256
"""Vectors on which the recall of a number of probes is measured, of all shards together."""
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
        count = self.neighbours.shape[1]
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), count)
            for each in (self.neighbours, self.similarity)
        ]
        return pa.table({"row": self.rows, "neighbours": lists[0], "similarity": lists[1]})

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
        CorruptResultError: vectors are damaged or gone.
        StorageError: the store does not cooperate. What is done stays done.
    """
    rows = sum(len(part.places) for part in search.base)
    plan = plan_index(rows, search.width, config.code, config.flat_rows)
    if not rows or not search.queries:
        return Found(search.results, (), plan, 0, 1.0)
    _train(search, plan)
    shards = _interleaved(search.base, max(_nodes(), plan.shards(rows, int(config.shard_gib * 2**30))))
    fitting = _fitting(len(shards), plan, max(sum(len(part.places) for part in shard) for shard in shards))
    passes = [shards[first : first + fitting] for first in range(0, len(shards), fitting)]
    probes, recall = 0, 1.0
    found: dict[str, str] = {}
    for number, some in enumerate(passes):
        with _actors(search, plan, some, config.gpus) as actors:
            if plan.lists:
                probes, recall = _probes(search, actors, plan, config.recall)
            asked = _Pass(search, tuple(actors), probes, number, len(passes))
            found = asked.carry_out(run, partial(_told, report, number, len(passes)))
    keys = tuple(found[_block_name(part, len(passes) - 1, len(passes))] for part in search.queries)
    return Found(search.results, keys, plan, probes, recall)


def _told(report: Report, number: int, passes: int, done: int, total: int) -> None:
    report(number * total + done, passes * total)


def _train(search: Search, plan: IndexPlan) -> None:
    """Train the index, if nobody has: a later start searches with the same one."""
    if not plan.lists or search.index.exists(_TRAINED):
        return
    rows = sum(len(part.places) for part in search.base)
    sample = take_rows(search.base, search.vectors, sample_rows(rows, sample_size(plan), (search.seed, 0)))
    search.index.put(_TRAINED, train_index(sample, plan, (search.seed, 1)))


def _interleaved(parts: Sequence[VectorPart], count: int) -> list[list[VectorPart]]:
    """Parts dealt out like cards: each shard holds some of everything, and about as much as the others."""
    dealt: list[list[VectorPart]] = [[] for _ in range(min(count, len(parts)))]
    for part in sorted(parts, key=lambda each: -len(each.places)):
        min(dealt, key=lambda shard: sum(len(each.places) for each in shard)).append(part)
    return [sorted(shard, key=lambda part: part.shard) for shard in dealt]


def _nodes() -> int:
    """Nodes that can compute."""
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0.0) > 0)


def _fitting(shards: int, plan: IndexPlan, shard_rows: int) -> int:
    """Shards that the cluster's memory holds at once, one at least."""
    import ray

    shard_bytes = plan.row_bytes * shard_rows
    holds = sum(int(node["Resources"].get("memory", 0.0) // shard_bytes) for node in ray.nodes() if node["Alive"])
    return max(1, min(shards, holds, cluster_cpus()))


class _ShardActor:
    """A shard of the index, asked by several threads at once; each of them computes alone."""

    def __init__(
        self,
        vectors: ResultFolder,
        plan: IndexPlan,
        index: Store | None,
        parts: Sequence[VectorPart],
        threads: int,
        on_gpu: bool,
    ) -> None:
        loaded = np.concatenate([part.load(vectors) for part in parts])
        trained = None if index is None else index.get(_TRAINED)
        with all_threads(threads):
            rows = np.concatenate([part.rows for part in parts])
            self._shard = SearchShard(plan, trained, loaded, rows, on_gpu=on_gpu)
        self._rows = len(loaded)

    def search(self, queries: Any, count: int, probes: int) -> tuple[Ints, Similarities]:
        return self._shard.search(queries, count, probes)

    def recall(self, asking: int, count: int, probes: int, seed: int) -> tuple[float, int]:
        places = sample_rows(self._rows, asking, (seed, 2))
        return self._shard.recall(places, count, probes), len(places)


@contextmanager
def _actors(
    search: Search, plan: IndexPlan, shards: Sequence[Sequence[VectorPart]], gpus: float
) -> Iterator[list[Any]]:
    import ray

    # Without CPUs of their own: they work while those who ask them wait, and on a single CPU both have to fit.
    remote = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
    threads = 1 if gpus else max(1, cluster_cpus() // len(shards))
    held = [ray.put(list(parts)) for parts in shards]  # an actor that is started again needs its arguments again
    started = [
        remote(_ShardActor)
        .options(memory=plan.row_bytes * sum(map(len, (part.places for part in parts))), max_concurrency=threads)
        .remote(search.vectors, plan, search.index if plan.lists else None, argument, threads, gpus > 0)
        for parts, argument in zip(shards, held, strict=True)
    ]
    try:
        yield started
    finally:
        for actor in started:
            ray.kill(actor)


def _probes(search: Search, actors: Sequence[Any], plan: IndexPlan, wanted: float) -> tuple[int, float]:
    """The fewest probes with which enough of the true neighbours are found, and how many are; decided once."""
    import ray

    store = search.index
    if store.exists(_CHOICE):
        probes, recall = json.loads(store.get(_CHOICE))
        return int(probes), float(recall)
    asking = max(1, _ASKING // len(actors))
    for probes in _PROBES:
        found = ray.get([actor.recall.remote(asking, search.count, probes, search.seed) for actor in actors])
        recall = float(np.average([share for share, _ in found], weights=[count for _, count in found]))
        if recall >= wanted or probes >= plan.lists:
            break
    store.put(_CHOICE, json.dumps([probes, recall]).encode())
    return probes, recall


@dataclass(frozen=True, slots=True)
class _Pass:
    """All blocks of queries against some shards; what passes before have found is merged with it."""

    search: Search
    actors: tuple[Any, ...]
    probes: int
    number: int
    passes: int

    def carry_out(self, run: Run, report: Report) -> dict[str, str]:
        """Keys of all results so far, by name."""
        found = self.search.results.found()
        names = [_block_name(part, self.number, self.passes) for part in self.search.queries]
        sizes = [len(part.places) for part in self.search.queries]
        left = [place for place, name in enumerate(names) if name not in found]
        done = sum(sizes) - sum(sizes[place] for place in left)
        report(done, sum(sizes))
        payloads = ((place, self._payload(self.search.queries[place], found)) for place in left)
        for place, key in run(payloads, self._search):
            found[names[place]] = key.decode()
            done += sizes[place]
            report(done, sum(sizes))
        return found

    def _payload(self, part: VectorPart, found: Mapping[str, str]) -> bytes:
        before = found[_block_name(part, self.number - 1, self.passes)] if self.number else None
        return json.dumps([part.shard, part.key, part.first, before]).encode() + b"\n" + part.places.tobytes()

    def _search(self, payload: bytes) -> bytes:
        """One block, in a task."""
        import ray

        header, _, places = payload.partition(b"\n")
        shard, key, first, before = json.loads(header)
        part = VectorPart(shard, key, first, np.frombuffer(places, np.int64))
        queries = ray.put(part.load(self.search.vectors))
        # One more than is wanted: a vector of the base finds itself.
        count = self.search.count + 1
        answers = ray.get([actor.search.remote(queries, count, self.probes) for actor in self.actors])
        if before is not None:
            earlier = NeighbourTable.from_arrow(self.search.results.read(before))
            answers.append((earlier.neighbours, earlier.similarity))
        rows, near = (np.concatenate(each, axis=1) for each in zip(*answers, strict=True))
        others = rows != part.rows[:, None]
        best = best_of(np.where(others, rows, NO_ROW), np.where(others, near, LOWEST), self.search.count)
        name = _block_name(part, self.number, self.passes)
        return self.search.results.write(name, NeighbourTable(part.rows, *best).to_arrow()).encode()


def _block_name(part: VectorPart, number: int, passes: int) -> str:
    return f"{part.shard:08d}-pass-{number + 1}-of-{passes}"
