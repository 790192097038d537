"""How well copies are found among real photographs: calibrated on one half of them, judged on the other."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frame import significant, tell
from heliostat.curation.calibration import Embed, calibrate, judge, plant
from heliostat.curation.copies import COPIES, HARD_COPIES, Copy
from heliostat.curation.copy_net import CopyEmbedding, embed, shipped_net
from heliostat.curation.dct_hash import dct_hashes
from heliostat.curation.image_maps import decode_small
from heliostat.curation.kmeans import Floats
from heliostat.curation.quality import Quality
from heliostat.data.decode import RgbImage, decode_rgb

_QUICK_IMAGES = 200
_VIEWS = 4
_RATE_IMAGES = 256


def photographs(folder: str, most: int | None = None) -> list[RgbImage]:
    """Photographs of a data set under HELIOSTAT_TEST_DATA, by name."""
    paths = sorted(Path(os.environ["HELIOSTAT_TEST_DATA"], folder).rglob("*.jpg"))
    return [decode_rgb(path.read_bytes()) for path in paths[:most]]


def judged_copies(quick: bool) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Ratios and details; nothing where there are no photographs."""
    if "HELIOSTAT_TEST_DATA" not in os.environ:
        return {"dedup_precision": None, "dedup_recall": None}, {"left out": "HELIOSTAT_TEST_DATA is not set"}
    tell("copies of photographs")
    images = photographs("clothing_cc0", _QUICK_IMAGES if quick else None)
    halves = images[::2], images[1::2]
    # Each is calibrated on all that it can find: a hash sees nothing of its image in a mirrored one.
    functions: dict[str, tuple[Embed, Mapping[str, Copy]]] = {
        "copy": (_by_net, {**COPIES, **HARD_COPIES}),
        "dct-hash": (_by_hash, COPIES),
    }
    details: dict[str, Any] = {"photographs": len(images)}
    for name, (function, kinds) in functions.items():
        threshold = calibrate([plant(halves[0], {kind: make}, function, 0) for kind, make in kinds.items()])
        details[name] = _judged(halves[1], function, threshold)
    details["copy at its own threshold"] = _judged(halves[1], _by_net, CopyEmbedding(0.0).threshold)
    details["ukbench recall@4"] = {
        name: significant(_views_found(function)) for name, (function, _) in functions.items()
    }
    ours = details["copy"]
    return {"dedup_precision": ours["precision"], "dedup_recall": ours["recall"]}, details


def _judged(images: Sequence[RgbImage], function: Embed, threshold: float) -> dict[str, Any]:
    """All kinds that have to be found together, and each of the hard ones alone."""
    sets = {"": COPIES, **{kind: {kind: make} for kind, make in HARD_COPIES.items()}}
    told: dict[str, Any] = {"threshold": significant(threshold)}
    for seed, (name, kinds) in enumerate(sets.items()):
        found = judge(plant(images, kinds, function, seed + 1), threshold)
        numbers = {"precision": significant(found.precision), "recall": significant(found.recall)}
        told |= {name: numbers} if name else numbers
    return told


def image_rates() -> tuple[float, float] | None:
    """Images per second of a core: measured by the filter, embedded by the copy-detection net; both decode."""
    if "HELIOSTAT_TEST_DATA" not in os.environ:
        return None
    paths = sorted(Path(os.environ["HELIOSTAT_TEST_DATA"], "clothing_cc0").rglob("*.jpg"))[:_RATE_IMAGES]
    files = [path.read_bytes() for path in paths]
    net = CopyEmbedding(0.0)
    found = []
    for function in (Quality(), net):
        compute = function.open()
        compute([decode_small(files[0], function.short_side_px)])
        started = time.process_time()
        compute([decode_small(data, function.short_side_px) for data in files])
        found.append(len(files) / (time.process_time() - started))
    return found[0], found[1]


def _views_found(function: Embed) -> float:
    """Of the views of each object, the share that is among the four nearest to each of them (itself included)."""
    paths = sorted(Path(os.environ["HELIOSTAT_TEST_DATA"], "ukbench1692").glob("*.jpg"))
    owners = np.array([int(path.stem[-5:]) // _VIEWS for path in paths])
    vectors = function([decode_rgb(path.read_bytes()) for path in paths])
    nearest = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :_VIEWS]
    there = np.bincount(owners)[owners]
    return float(((owners[nearest] == owners[:, None]).sum(axis=1) / np.minimum(there, _VIEWS)).mean())


def _by_net(images: Sequence[RgbImage]) -> Floats:
    return embed(shipped_net(), images)


def _by_hash(images: Sequence[RgbImage]) -> Floats:
    return dct_hashes(images).astype(np.float32)
