"""What a pool of the size of a paper's would take, from rates that were measured on a small one.

DINOv2 (appendix A): 1.2 billion images, k-NN and components, retrieval by 100,000 clusters, on 20 nodes of 8 V100 in
less than two days. Measured rates are those of one core of the machine that the bench ran on. What no GPU was there to
measure is reckoned from its floating-point operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

IMAGES = 1_200_000_000
PUBLISHED = "published: 20 nodes x 8 V100, less than 2 days (DINOv2 paper, section 3)"
NODES, NODE_CORES, NODE_USD_PER_H = 20, 96, 1.5
"""Assumed: spot nodes of 96 cores; their price moves."""
GPUS_PER_NODE, GPU_TFLOPS, GPU_USD_PER_H = 8, 40.0, 0.8
"""Assumed of a V100 on spot: a third of its 125 TFLOP/s."""
_EMBED_GFLOP = 335.0
"""A ViT-H/16 at 224 px, forward: the paper's embedding for retrieval (632 M parameters, 197 tokens, and attention)."""
_CLUSTERS, _ROUNDS, _WIDTH = 100_000, 20, 1280
_CORE_S_PER_H = 3600.0
_LONGER_LISTS_FROM = 2**18 * 256
"""Vectors from which on an index has no more lists, but longer ones: all of the search is taken to grow with them."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured, of one core.

    Attributes:
        measures_per_s: Images read, decoded and measured by the filter.
        copies_per_s: Images decoded and embedded by the copy-detection net.
        neighbours_core_s: For all neighbours of ``neighbours_rows`` vectors.
        neighbours_rows: See there.
        exponent: By which that grows with their number.
        gflops: Of products in fp32, as k-means does them.
    """

    measures_per_s: float
    copies_per_s: float
    neighbours_core_s: float
    neighbours_rows: int
    exponent: float
    gflops: float


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """Core hours and GPU hours of one stage."""

    name: str
    core_h: float
    gpu_h: float = 0.0


def paper_plan(rates: Rates, images: int = IMAGES) -> list[PlannedStage]:
    """The stages of a curation like the paper's."""
    larger = images / rates.neighbours_rows
    longer = max(1.0, images / _LONGER_LISTS_FROM)
    kmeans_gflop = 2e-9 * images * _CLUSTERS * _WIDTH * _ROUNDS
    return [
        PlannedStage("filter", images / rates.measures_per_s / _CORE_S_PER_H),
        PlannedStage("copy embedding", images / rates.copies_per_s / _CORE_S_PER_H),
        PlannedStage("neighbours", rates.neighbours_core_s * larger**rates.exponent * longer / _CORE_S_PER_H),
        PlannedStage("retrieval embedding", 0.0, images * _EMBED_GFLOP / (GPU_TFLOPS * 1e3) / _CORE_S_PER_H),
        PlannedStage("clusters", kmeans_gflop / rates.gflops / _CORE_S_PER_H),
    ]


def hours_and_cost(stages: Sequence[PlannedStage]) -> tuple[float, float]:
    """Hours on ``NODES`` nodes of each kind, one stage after the other, and US dollars."""
    core_h, gpu_h = sum(stage.core_h for stage in stages), sum(stage.gpu_h for stage in stages)
    hours = core_h / (NODES * NODE_CORES) + gpu_h / (NODES * GPUS_PER_NODE)
    return hours, core_h / NODE_CORES * NODE_USD_PER_H + gpu_h * GPU_USD_PER_H


def in_words(stages: Sequence[PlannedStage]) -> list[str]:
    """Line by line."""
    hours, usd = hours_and_cost(stages)
    lines = [
        f"{stage.name}: {stage.core_h:,.0f} core hours" + (f", {stage.gpu_h:,.0f} GPU hours" if stage.gpu_h else "")
        for stage in stages
    ]
    nodes = f"{NODES} nodes of {NODE_CORES} cores, and {NODES} of {GPUS_PER_NODE} GPUs for the embedding"
    return [*lines, f"together {hours:,.1f} h on {nodes}, about {usd:,.0f} USD (assumed prices); {PUBLISHED}"]
