"""Curation: how well copies are found, how fast neighbours and clusters are, and what a paper-sized pool would take.

Ratios:
    dedup_precision, dedup_recall: of pairs of the same photograph among ``clothing_cc0`` with planted copies
        (recompressed, resized, cropped by 5 %, recoloured, watermarked), by the embedding that is the default; the
        threshold is calibrated on one half of the photographs (mirrored ones and those cropped by 25 % included) and
        judged on the other. Wanted: 0.98 each; of mirrored and cropped ones, a class of their own, 0.9.
    knn_recall_sq8: share of the 64 nearest neighbours of 100,000 generated vectors of width 384 that are found with
        8-bit codes. Wanted: 0.97.
    knn_vs_sklearn: seconds of scikit-learn (brute force, the same threads) over ours, for all of them.
    kmeans_vs_faiss: seconds of faiss's spherical k-means over ours, 1,000 clusters of the same vectors, 20 rounds.
    cost_exponent: smaller is better: slope of log(CPU seconds of neighbours of all) over log(vectors), from 10,000 to
        1,000,000 vectors, the recall of 0.97 held at every size. Wanted: below 1.3.

Floor: neighbours of all vectors compared with all, at the machine's rate of fp32 products; ``floor_fraction`` is that
over what ours took: above 1, because lists leave most of it out.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import above  # noqa: F401 -- for what tests share
import numpy as np
from support.points import stored, surface

from curation_copies import image_rates, judged_copies
from frame import BenchResult, Spread, run_bench, significant, tell
from heliostat.config.curate import SearchConfig
from heliostat.curation.index import SearchShard, plan_index, sample_size, train_index
from heliostat.curation.kmeans import Ints, Vectors, kmeans, sample_rows
from heliostat.curation.neighbours import NeighbourTable, Search, find_neighbours
from heliostat.curation.ray_points import ray_points
from heliostat.data.ray_tasks import run_tasks
from heliostat.storage.local import LocalStore
from heliostat.storage.results import ResultFolder
from heliostat_cluster.local import local_ray
from paper_plan import Rates, in_words, paper_plan
from process_tree import tree_use

_WIDTH, _K = 384, 64
_ROWS, _QUICK_ROWS = 100_000, 20_000
_SIZES = (10_000, 31_623, 100_000, 316_228, 1_000_000)
_PART_ROWS = 4096
_ASKED = 500
_RECALL = 0.97
_CLUSTERS, _ROUNDS = 1000, 20
_SKLEARN_SHARE = 0.1
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Timed:
    """What something gave, and what it took."""

    value: Any
    wall_s: float
    cpu_s: float
    """Of this process alone."""
    peak_mib: float
    """Memory of this process and all below it, beyond what they had before."""


def timed(work: Callable[[], Any]) -> Timed:
    """Do some work and look on."""
    ended = threading.Event()
    seen_mib = [_memory_mib()]

    def look() -> None:
        while not ended.wait(_LOOK_S):
            seen_mib.append(_memory_mib())

    looking = threading.Thread(target=look)
    looking.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        value = work()
    finally:
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        ended.set()
        looking.join()
    return Timed(value, wall_s, cpu_s, max(seen_mib) - seen_mib[0])


def _memory_mib() -> float:
    return sum(use.own_mib for use in tree_use().values())


def true_neighbours(vectors: Vectors, asked: Ints, count: int) -> Ints:
    """Of some vectors, by comparing them with all; a vector is no neighbour of itself. (n, count)."""
    import faiss

    _, found = faiss.knn(
        vectors[asked].astype(np.float32), vectors.astype(np.float32), count + 1, metric=faiss.METRIC_INNER_PRODUCT
    )
    return np.array([row[row != own][:count] for row, own in zip(found, asked, strict=True)])


def recall(found: Ints, truth: Ints) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def neighbours_beside_others(rows: int) -> tuple[dict[str, float | None], dict[str, Any]]:
    """All-pairs neighbours by us, by faiss in one process, and by scikit-learn; k-means by us and by faiss."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    vectors = surface(rows, _WIDTH)
    asked = sample_rows(rows, _ASKED, (1,))
    truth = true_neighbours(vectors, asked, _K)
    with tempfile.TemporaryDirectory() as scratch, local_ray(os.cpu_count() or 1):
        folder, parts = stored(LocalStore(Path(scratch)), vectors, _PART_ROWS)
        root = LocalStore(Path(scratch))
        search = Search(folder, root.sub("index"), ResultFolder(root.sub("found")), parts, parts, _WIDTH, _K, 0)
        config = SearchConfig.model_validate({"flat_rows": 0, "recall": 0.98, "code": "sq8"})
        tell(f"neighbours of {rows:,} vectors")
        ours = timed(lambda: find_neighbours(search, config, run_tasks))
        tables = [NeighbourTable.from_arrow(ours.value.folder.read(key)) for key in ours.value.keys]
        found = np.concatenate([table.neighbours for table in tables])[asked]
        with ray_points(folder, parts, os.cpu_count() or 1) as points:
            points.map(_touch)
            clusters = timed(lambda: kmeans(points, _CLUSTERS, (0,), rounds=_ROUNDS))
    floats = vectors.astype(np.float32)
    tell("k-means by faiss")

    def by_faiss() -> Any:
        means = faiss.Kmeans(_WIDTH, _CLUSTERS, niter=_ROUNDS, spherical=True, seed=1, max_points_per_centroid=10**9)
        means.train(floats)
        return means

    theirs = timed(by_faiss)
    similarity, _ = theirs.value.index.search(floats, 1)
    tell("neighbours by faiss in one process")
    index: Any = faiss.index_factory(_WIDTH, f"IVF{ours.value.plan.lists},SQ8", faiss.METRIC_INNER_PRODUCT)

    def all_by_faiss() -> Any:
        index.train(floats)
        index.add(floats)
        index.nprobe = 32
        return index.search(floats, _K + 1)[1]

    in_faiss = timed(all_by_faiss)
    rows_of_faiss = [row[row != own][:_K] for row, own in zip(in_faiss.value[asked], asked, strict=True)]
    tell("a tenth of the neighbours by scikit-learn")
    some = sample_rows(rows, int(rows * _SKLEARN_SHARE), (2,))
    learner = NearestNeighbors(n_neighbors=_K + 1, algorithm="brute", n_jobs=os.cpu_count()).fit(floats)
    sklearn = timed(lambda: learner.kneighbors(floats[some], return_distance=False))
    sklearn_s = sklearn.wall_s / _SKLEARN_SHARE
    ratios: dict[str, float | None] = {
        "knn_recall_sq8": recall(found, truth),
        "knn_vs_sklearn": sklearn_s / ours.wall_s,
        "kmeans_vs_faiss": theirs.wall_s / clusters.wall_s,
    }
    details = {
        "vectors": rows,
        "ours_s": significant(ours.wall_s),
        "ours_probes": ours.value.probes,
        "ours_recall_by_itself": significant(ours.value.recall),
        "ours_bytes_per_vector": ours.value.plan.row_bytes,
        "ours_peak_mib": significant(ours.peak_mib),
        "faiss_one_process_s": significant(in_faiss.wall_s),
        "faiss_peak_mib": significant(in_faiss.peak_mib),
        "faiss_recall": significant(recall(np.array(rows_of_faiss), truth)),
        "sklearn_s_scaled": significant(sklearn_s),
        "sklearn_peak_mib": significant(sklearn.peak_mib + floats.nbytes / 2**20),
        "kmeans_ours_s": significant(clusters.wall_s),
        "kmeans_faiss_s": significant(theirs.wall_s),
        "kmeans_ours_mean_distance": significant(clusters.value.potential / rows),
        "kmeans_faiss_mean_distance": significant(float(1 - similarity.mean())),
    }
    return ratios, details


def _touch(chunk: Vectors) -> Any:
    return np.zeros(1)


def cost_of(rows: int) -> dict[str, float]:
    """CPU seconds of training, filling and searching all of so many vectors in one process, at the recall wanted."""
    vectors = surface(rows, _WIDTH)
    plan = plan_index(rows, _WIDTH, "sq8", 0)
    asked = sample_rows(rows, _ASKED, (1,))
    truth = true_neighbours(vectors, asked, _K)
    started = time.process_time()
    trained = train_index(vectors[sample_rows(rows, sample_size(plan), (0,))], plan, (0,))
    shard = SearchShard(plan, trained, vectors, np.arange(rows))
    trained_s = time.process_time() - started
    reached, probes = 0.0, 0
    for probes in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96):
        rows_found, _ = shard.search(vectors[asked], _K + 1, probes)
        mine = np.array([row[row != own][:_K] for row, own in zip(rows_found, asked, strict=True)])
        reached = recall(mine, truth)
        if reached >= _RECALL:
            break
    searched = time.process_time()
    shard.search(vectors, _K + 1, probes)
    searched_s = time.process_time() - searched
    tell(f"{rows:,} vectors: {trained_s:.0f} + {searched_s:.0f} CPU seconds, {probes} probes, recall {reached:.3f}")
    return {
        "vectors": rows,
        "cpu_s": significant(trained_s + searched_s),
        "train_cpu_s": significant(trained_s),
        "probes": probes,
        "recall": significant(reached),
    }


def exponent(costs: list[dict[str, float]]) -> float:
    """Slope of the straight line through the logarithms."""
    x, y = (np.log([each[name] for each in costs]) for name in ("vectors", "cpu_s"))
    return float(np.polyfit(x, y, 1)[0])


def measure(quick: bool) -> BenchResult:
    """The bench."""
    copies, of_copies = judged_copies(quick)
    ratios, details = neighbours_beside_others(_QUICK_ROWS if quick else _ROWS)
    costs = [cost_of(rows) for rows in (_SIZES[:2] if quick else _SIZES)]
    ratios = {**copies, **ratios, "cost_exponent": None if quick else exponent(costs)}
    flops = 2.0 * details["vectors"] ** 2 * _WIDTH
    floor_s = flops / _product_rate()
    measured = {"ours": Spread((details["ours_s"],)).summary("s")}
    details = {"measured": measured, "copies": of_copies, "neighbours": details, "costs": costs}
    if not quick and (rates := image_rates()) is not None:
        planned = paper_plan(
            Rates(*rates, costs[-1]["cpu_s"], int(costs[-1]["vectors"]), exponent(costs), _gflops_of_core())
        )
        details |= {"paper plan": [asdict(stage) for stage in planned], "notes": in_words(planned)}
    return BenchResult("curation", ratios, floor_s / measured["ours"]["median"], details)


def _product_rate() -> float:
    """Floating-point operations per second of a large fp32 product."""
    return 2 * 2048**3 / min(each.wall_s for each in _products())


def _gflops_of_core() -> float:
    """The same per second of a core."""
    return 2e-9 * 2048**3 / min(each.cpu_s for each in _products())


def _products() -> list[Timed]:
    a = np.ones((2048, 2048), np.float32)
    a @ a
    return [timed(lambda: a @ a) for _ in range(5)]


if __name__ == "__main__":
    run_bench("curation", __doc__, measure)
