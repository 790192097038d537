"""From encoded photographs to crops, in images per CPU-second, and from a folder to a dataset, in images per second.

Measured on the photographs of ``clothing_cc0`` below ``HELIOSTAT_TEST_DATA``; where that is not set, on generated JPEG
files (``details.images_from`` says which). The crops are those of the default recipe, 2 of 224 and 8 of 98 px.

Ratios (of images per CPU-second, larger is better):
    crops_vs_pillow: ``slot_crops`` over the same crops with the same parameters by Pillow. Pillow's Gaussian blur is an
        approximation by box filters, several times as fast as the convolution of the published recipe: the ratio is on
        the low side.
    crops_vs_decode_only: ``slot_crops`` over ours without augmentation: decode, and two cubic resizes to 224 px.
    ray_vs_inline, ray_vs_dataloader, ray_vs_webdataset, first_batch_s: streaming; not measured here yet.

Floor: every image must be decoded once. ``floor_fraction`` is the rate of ``slot_crops`` over that of Pillow decoding
alone: the share of the CPU time that would be left if crops cost nothing.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from frame import RUNS, BenchResult, Spread, in_turns, run_bench, significant, tell
from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.crops import slot_crops
from heliostat.data.images import decode_rgb
from heliostat.data.ingest import ingest
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray
from reference_crops import decode, pillow_crops

CONFIG = AugmentationConfig()
_SEED = 0
_SLOT_IMAGES = 16
_QUICK_IMAGES, _FULL_IMAGES = 48, 256
_QUICK_INGESTED, _FULL_INGESTED = 192, 1536
_INGEST_RUNS = 3
_LARGEST_DIFFERENCE = 8.0
"""Mean absolute difference between our crops and Pillow's, in steps of 255: filters differ, what is shown may not."""


def photographs(folder: Path, wanted: int) -> tuple[list[Path], str]:
    """Up to ``wanted`` files of photographs, and what they are; generated ones are written to ``folder``."""
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    found = sorted((Path(data) / "clothing_cc0").rglob("*.jpg")) if data else []
    if found:
        random.Random(_SEED).shuffle(found)
        return found[:wanted], "clothing_cc0"
    paths = [folder / f"{index:05}.jpg" for index in range(wanted)]
    for index, path in enumerate(paths):
        path.write_bytes(generated_photograph(index))
    return paths, "generated images: HELIOSTAT_TEST_DATA does not lead to clothing_cc0"


def generated_photograph(index: int, width: int = 533, height: int = 400) -> bytes:
    """A JPEG file whose detail falls off with its fineness, as that of photographs does."""
    rng = np.random.default_rng(index)
    pixels = np.zeros((height, width, 3), np.float32)
    for level in range(1, 8):
        noise = rng.standard_normal((2**level * 3 // 4 + 1, 2**level, 3)).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 90 / level**1.5
    buffer = BytesIO()
    Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def crops_of(encoded: Sequence[bytes]) -> None:
    """The product: all crops of all images, a slot at a time."""
    for start in range(0, len(encoded), _SLOT_IMAGES):
        slot = encoded[start : start + _SLOT_IMAGES]
        slot_crops(CONFIG, _SEED, range(start, start + len(slot)), slot)


def decode_and_resize(encoded: Sequence[bytes]) -> None:
    """The product's decoder and two cubic resizes."""
    side = (CONFIG.global_px, CONFIG.global_px)
    for data in encoded:
        pixels = decode_rgb(data)
        for _ in range(2):
            cv2.resize(pixels, side, interpolation=cv2.INTER_CUBIC)


def pillow_crops_of(encoded: Sequence[bytes]) -> None:
    """The reference: all crops of all images by Pillow."""
    for position, data in enumerate(encoded):
        pillow_crops(CONFIG, _SEED, position, data)


def pillow_decode(encoded: Sequence[bytes]) -> None:
    """Pillow's decoder alone."""
    for data in encoded:
        decode(data)


CANDIDATES: dict[str, Callable[[Sequence[bytes]], None]] = {
    "crops": crops_of,
    "pillow_crops": pillow_crops_of,
    "decode_and_resize": decode_and_resize,
    "pillow_decode": pillow_decode,
}


def crop_difference(encoded: Sequence[bytes]) -> float:
    """Mean absolute difference between the product's crops and Pillow's.

    Raises:
        ValueError: they show different things.
    """
    total = 0.0
    for position, data in enumerate(encoded):
        ours = slot_crops(CONFIG, _SEED, [position], [data])
        theirs = pillow_crops(CONFIG, _SEED, position, data)
        pairs = zip((ours.global_crops, ours.local_crops), theirs, strict=True)
        total += float(np.mean([np.abs(mine.astype(np.int16) - other).mean() for mine, other in pairs]))
    difference = total / len(encoded)
    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(f"our crops and Pillow's differ by {difference:.1f} of 255 on average")
    tell(f"our crops and Pillow's differ by {difference:.2f} of 255 on average")
    return difference


def measure_crops(encoded: Sequence[bytes], runs: int = RUNS) -> dict[str, Spread]:
    """Images per CPU-second of every candidate."""
    work = {name: (lambda run=run: run(encoded)) for name, run in CANDIDATES.items()}
    # CPU time, not time: of all threads of this process, whatever else the machine does.
    costs = in_turns(work, runs=runs, clock=time.process_time)
    return {name: cost.per(len(encoded)) for name, cost in costs.items()}


def measure_ingest(paths: Sequence[Path], scratch: Path, runs: int) -> Spread:
    """Images per second of ingest on an embedded Ray that is already running, after one ingest to warm up."""
    source = scratch / "source"
    source.mkdir()
    for path in paths:
        shutil.copy(path, source)  # links out of a source are refused
    results = []
    with local_ray(num_cpus=os.cpu_count() or 1):
        for run in range(-1, runs):
            result = ingest(source, open_store(str(scratch / f"root{run}")), "photographs")
            tell(f"ingest {run + 2} of {runs + 1}: {result.images} images in {result.duration_s:.1f} s")
            if run >= 0:
                results.append(result.images / result.duration_s)
    return Spread(tuple(results))


def result_of(rates: dict[str, Spread], ingested: Spread, details: dict[str, Any]) -> BenchResult:
    """Ratios of the rates."""
    vs_pillow = rates["crops"].over(rates["pillow_crops"])
    vs_decode_only = rates["crops"].over(rates["decode_and_resize"])
    measured = {name: rate.summary("images/CPU-s") for name, rate in rates.items()}
    measured |= {
        "crops_vs_pillow": vs_pillow.summary("ratio"),
        "crops_vs_decode_only": vs_decode_only.summary("ratio"),
        "ingest": ingested.summary("images/s"),
    }
    reference_fraction = significant(rates["pillow_crops"].over(rates["pillow_decode"]).median)
    note = f"Images: {details['images_from']}. Pillow's crops reach {reference_fraction} of Pillow's decoding alone."
    return BenchResult(
        bench="ingest",
        ratios={
            "crops_vs_pillow": vs_pillow.median,
            "crops_vs_decode_only": vs_decode_only.median,
            "ray_vs_inline": None,
            "ray_vs_dataloader": None,
            "ray_vs_webdataset": None,
            "first_batch_s": None,
        },
        floor_fraction=rates["crops"].over(rates["pillow_decode"]).median,
        details={**details, "pillow_crops_over_decode": reference_fraction, "measured": measured, "notes": [note]},
    )


def measure(quick: bool) -> BenchResult:
    """The bench."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "generated").mkdir()
        paths, images_from = photographs(scratch / "generated", _QUICK_INGESTED if quick else _FULL_INGESTED)
        tell(f"{len(paths)} images ({images_from})")
        encoded = [path.read_bytes() for path in paths[: _QUICK_IMAGES if quick else _FULL_IMAGES]]
        details = {
            "images_from": images_from,
            "images": len(encoded),
            "mean_kib": round(sum(map(len, encoded)) / len(encoded) / 2**10, 1),
            "crop_difference": significant(crop_difference(encoded[:_SLOT_IMAGES])),
            "images_ingested": len(paths),
        }
        rates = measure_crops(encoded)
        ingested = measure_ingest(paths, scratch, 1 if quick else _INGEST_RUNS)
    return result_of(rates, ingested, details)


if __name__ == "__main__":
    run_bench("ingest", __doc__, measure)
