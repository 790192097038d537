"""From encoded photographs to crops, from a dataset to a worker, and from a folder to a dataset.

Measured on the photographs of ``clothing_cc0`` below ``HELIOSTAT_TEST_DATA``; where that is not set, on generated JPEG
files (``details.images_from`` says which). The crops are those of the default recipe, 2 of 224 and 8 of 98 px.

Ratios (of images per CPU-second of all processes that take part, larger is better):
    crops_vs_pillow: decoding, all crops and every change of colour, over the same by Pillow. Void unless Pillow's crops
        reach 0.06 of the rate of Pillow's decoder, to an array of pixels (``details.pillow_crops_over_decode``).
    crops_vs_decode_only: what is left for the CPU beside a GPU that changes the colours, over decoding and ten resizes
        whose parameters are known before. Wanted: at least 1/1.3.
    ray_vs_inline: our path to a worker (Ray Data, feeders), start-up excluded, over the same work in one process that
        reads, decodes and crops, without Ray. Two such processes run at once, as there are two feeders.
    ray_vs_dataloader, ray_vs_webdataset: over torch's DataLoader on the same Parquet files, and over webdataset on tar
        files of the same images; neither checks hashes or can resume.
    first_batch_s: no ratio but seconds, smaller is better: the later of two resumes, at 10 % and 90 % of an epoch
        (``details.first_batch_s`` has both), from asking until the first step is there; the start of the feeder's
        processes counts, that of Ray does not.

Floor: every image must be decoded once. ``floor_fraction`` is the rate of our crops over that of decoding and resizing
alone: the share of the CPU time that would be left if draws and colours cost nothing.

``details`` also has the cost of reading (bytes read over bytes used of a dense dataset with 1 and 8 workers and of a
selection of a tenth, see ``read_costs.py``), the memory of the stream's processes beside its stated bounds
(``ray_peer.py``), and ingest from 1,000 to 100,000 images (``ingest_scaling.py``).
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crop_candidates import CONFIG, SLOT_IMAGES, candidates
from frame import RUNS, BenchResult, Spread, in_turns, run_bench, significant, tell
from heliostat.data.ingest import ingest
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray
from ingest_scaling import Scaling, measure_scaling, scaling_table
from photographs import photographs
from ray_peer import stated_mib
from read_costs import DENSE, MOST_WORKERS, SPARSE, measure_epoch, predicted_ratio, write_datasets
from stream_peers import TURN_IMAGES, Setup, write_tars
from stream_turns import NAMES, Turns, peers

_QUICK_IMAGES, _FULL_IMAGES = 48, 256
_QUICK_INGESTED, _FULL_INGESTED = 512, 1536
_QUICK_TURNS, _FULL_TURNS = 1, 3
_TURN_CHUNKS = 2
_QUICK_SIZES, _FULL_SIZES = (1_000,), (1_000, 10_000, 100_000)
_ROUND_IMAGES = 10_000
"""Small, so that the largest size takes many rounds: what a round needs is bounded, whatever the source."""
_QUICK_GROUPS, _FULL_GROUPS = 32, 96
_RESUMES = (0.1, 0.9)
_NAME = "photographs"
_CROP_BYTES = 3 * (2 * CONFIG.global_px**2 + CONFIG.local_count * CONFIG.local_px**2)


def measure_crops(encoded: Sequence[bytes], runs: int) -> dict[str, Spread]:
    """Images per CPU-second of every candidate."""
    work = {name: (lambda run=run: run(encoded)) for name, run in candidates(encoded).items()}
    # CPU time, not time: of all threads of this process, whatever else the machine does.
    costs = in_turns(work, runs=runs, clock=time.process_time)
    return {name: cost.per(len(encoded)) for name, cost in costs.items()}


def write_dataset(paths: Sequence[Path], scratch: Path) -> Setup:
    """The photographs as a dataset and as tar files."""
    source, root = scratch / "source", scratch / "root"
    source.mkdir()
    for path in paths:
        shutil.copy(path, source)  # links out of a source are refused
    with local_ray(num_cpus=2):
        result = ingest(source, open_store(str(root)), _NAME)
    (scratch / "tars").mkdir()
    tars = write_tars(sorted(source.iterdir()), scratch / "tars", 128)
    return Setup(str(root), _NAME, result.manifest_sha256, tars)


def measure_streams(setup: Setup, turns: int) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Images per CPU-second of every way to a worker, and what else the product's own way tells."""
    with peers(setup) as running:
        measured = Turns(running, _TURN_CHUNKS * TURN_IMAGES, turns)
        (product,) = running["ray"]
        memory = product.ask("memory", images=TURN_IMAGES)
        idle = product.ask("idle", seconds=4.0)
        product.ask("stop")
        first_batch = {f"at {at:.0%}": significant(product.ask("first_batch", at=at)) for at in _RESUMES}
    tell(f"first batch after a resume: {first_batch} s")
    details = {
        "first_batch_s": first_batch,
        "images_per_s": {name: significant(measured.per_s(name).median) for name in NAMES},
        "cpu_ms_per_image": {name: measured.cpu_ms_per_image(name) for name in NAMES},
        "idle_cpu_per_s": {kind: significant(share) for kind, share in idle.items()},
        "memory_mib": {kind: round(peak) for kind, peak in memory.items()},
    }
    return {f"{name}_stream": measured.per_cpu_s(name) for name in NAMES}, details


def measure_reading(scratch: Path, groups: int) -> dict[str, float]:
    """Bytes read over bytes used."""
    (scratch / "read").mkdir()
    root = open_store(str(scratch / "read" / "root"))
    write_datasets(root, scratch, groups)
    workers = (1, MOST_WORKERS)
    found = {f"{count} workers": significant(measure_epoch(root.url, DENSE, count).ratio) for count in workers}
    found["1 worker, selection of 10 %"] = significant(measure_epoch(root.url, SPARSE, 1).ratio)
    found["predicted of the selection"] = significant(predicted_ratio(root, SPARSE))
    tell(f"bytes read over bytes used: {found}")
    return found


def measure_ingest(scratch: Path, sizes: Sequence[int]) -> list[Scaling]:
    """Ingest of small generated images."""
    (scratch / "scaling").mkdir()
    results = measure_scaling(sizes, scratch / "scaling", _ROUND_IMAGES)
    tell(scaling_table(results))
    return results


def result_of(rates: dict[str, Spread], details: dict[str, Any]) -> BenchResult:
    """Ratios of the rates."""
    ratios = {
        "crops_vs_pillow": rates["crops"].over(rates["pillow_crops"]),
        "crops_vs_decode_only": rates["crops_without_colours"].over(rates["decode_and_cut"]),
        "ray_vs_inline": rates["ray_stream"].over(rates["inline_stream"]),
        "ray_vs_dataloader": rates["ray_stream"].over(rates["dataloader_stream"]),
        "ray_vs_webdataset": rates["ray_stream"].over(rates["webdataset_stream"]),
    }
    measured = {name: rate.summary("images/CPU-s") for name, rate in rates.items()}
    measured |= {name: ratio.summary("ratio") for name, ratio in ratios.items()}
    reference = significant(rates["pillow_crops"].over(rates["pillow_decode"]).median)
    notes = [
        f"Images: {details['images_from']}. Pillow's crops reach {reference} of Pillow's decoder (0.06 wanted).",
        "Ingest of small images in rounds of 10,000:\n\n"
        + scaling_table([Scaling(**each) for each in details["ingest"]]),
        f"Bytes read over bytes used: {details['bytes_read_over_used']}.",
        f"Memory in MiB, peak: {details['memory_mib']}; stated bounds without Python: {details['stated_mib']}.",
    ]
    return BenchResult(
        bench="ingest",
        ratios={name: ratio.median for name, ratio in ratios.items()}
        | {"first_batch_s": max(details["first_batch_s"].values())},
        floor_fraction=rates["crops"].over(rates["decode_and_cut"]).median,
        details={**details, "pillow_crops_over_decode": reference, "measured": measured, "notes": notes},
    )


def measure(quick: bool) -> BenchResult:
    """The bench."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "generated").mkdir()
        paths, images_from = photographs(scratch / "generated", _QUICK_INGESTED if quick else _FULL_INGESTED)
        tell(f"{len(paths)} images ({images_from})")
        encoded = [path.read_bytes() for path in paths[: _QUICK_IMAGES if quick else _FULL_IMAGES]]
        mean_bytes = statistics.mean(map(len, encoded))
        rates = measure_crops(encoded, _QUICK_TURNS if quick else RUNS)
        streams, streaming = measure_streams(write_dataset(paths, scratch), _QUICK_TURNS if quick else _FULL_TURNS)
        details = {
            "images_from": images_from,
            "images": len(encoded),
            "images_streamed": len(paths),
            "slot_images": SLOT_IMAGES,
            "mean_kib": round(mean_bytes / 2**10, 1),
            **streaming,
            "stated_mib": {
                kind: round(bound)
                for kind, bound in stated_mib(mean_bytes, _CROP_BYTES, round(128 * mean_bytes)).items()
            },
            "bytes_read_over_used": measure_reading(scratch, _QUICK_GROUPS if quick else _FULL_GROUPS),
            "ingest": [asdict(each) for each in measure_ingest(scratch, _QUICK_SIZES if quick else _FULL_SIZES)],
        }
    return result_of({**rates, **streams}, details)


if __name__ == "__main__":
    run_bench("ingest", __doc__, measure)
