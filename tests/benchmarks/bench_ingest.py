"""From encoded photographs to crops, from a dataset to a worker, and from a folder to a dataset.

Measured on the photographs of ``clothing_cc0`` below ``HELIOSTAT_TEST_DATA``; where that is not set, on generated JPEG
files (``details.images_from`` says which). The crops are those of the default recipe, 2 of 224 and 8 of 98 px. Rates
are images per CPU-second of all processes that take part: Ray's own count, also while they idle.

Ratios (larger is better but for the last):
    crops_vs_pillow: decoding, all crops and every change of colour, over the same by Pillow. Void (null, with a note)
        unless Pillow's crops reach 0.06 of the rate of Pillow's decoder, to an array of pixels.
    crops_vs_decode_only: what is left for the CPU beside a GPU that changes the colours, over decoding and ten resizes
        whose parameters are known before. Wanted: at least 1/1.3.
    ray_vs_inline: our path to a worker (Ray Data, two feeders), start-up excluded, over the same work in one process
        without Ray: it reads verified rows in the same order and makes the same step inputs. Two such processes run at
        once, as there are two feeders. Wanted: at least 0.9. Inline hands its crops to nobody, so that it writes to
        memory that its caches hold. Ray idles at some 0.06 of a core, which weighs the more the longer images take:
        measured on a busy machine, the ratio is too low.
    ray_vs_dataloader, ray_vs_webdataset: over torch's DataLoader on the same Parquet files, and over webdataset on tar
        files of the same images, with two processes each; neither checks hashes, draws masks or can resume.
    first_batch_s: seconds, smaller is better: the later of two resumes, at 10 % and 90 % of an epoch
        (``details.first_batch_s`` has both), from asking until the first step is there. The start of the feeders
        counts, that of Ray does not. Wanted: equal, at most 10.

The dataset of these is small, 12 row groups: it lies in the memory of the system, which no storage is, and an epoch is
three windows.

Floor: every image must be decoded and cut. ``floor_fraction`` is the rate of our crops over that of decoding and
resizing alone: the share of the CPU time that would be left if draws and colours cost nothing.

``details`` also has

- ``bytes_read_over_used`` (``read_costs.py``): of a dense dataset by 1 worker through Ray, and without Ray by 1 and by
  8 workers on nodes of their own without a cache; of a selection of a tenth, and what was predicted of that. Random
  bytes, on a local disk; requests are planned as for S3.
- ``memory_mib`` beside ``stated_mib`` (``ray_peer.py``), for a single worker; processes without ``libraries_mib``,
  what the same imports take in a process that does nothing.
- ``ingest`` from 1,000 to 100,000 images of 1.5 KB (``ingest_scaling.py``); ``measured.ingest`` is of photographs.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crop_candidates import CONFIG, SLOT_IMAGES, candidates
from frame import RUNS, BenchResult, Spread, in_turns, run_bench, significant, tell
from heliostat.data.ingest import ingest
from heliostat.data.shards import DEFAULT_LAYOUT
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray
from ingest_scaling import Scaling, measure_scaling, scaling_table
from photographs import photographs
from ray_peer import libraries_mib, stated_mib
from read_costs import DENSE, MOST_WORKERS, SPARSE, measure_epoch, predicted_ratio, write_datasets
from stream_peers import TURN_IMAGES, Setup, write_tars
from stream_turns import NAMES, PeerProcess, Turns, peers

_PHOTOGRAPHS = 1536
_TURN_CHUNKS = 4
_ROUND_IMAGES = 10_000
"""Small, so that the largest size takes many rounds: what a round needs is bounded, whatever the source."""
_RESUMES = {"10 %": 0.1, "90 %": 0.9}
_WARM_UP_IMAGES = 64
_PAUSED_S, _IDLE_S = 5.0, 4.0
"""How long the worker takes nothing while memory and while idle processes are measured."""
_TAR_IMAGES = 128
_NAME = "photographs"
_CROP_BYTES = 3 * (2 * CONFIG.global_px**2 + CONFIG.local_count * CONFIG.local_px**2)
_REFERENCE_FRACTION = 0.06
"""Of Pillow's decoder that Pillow's crops must reach: below, the reference would be a straw man."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    encoded: int
    """Photographs of which crops are made in memory."""
    crop_turns: int
    stream_turns: int
    settling_chunks: int
    """Made before the product's stream is measured: the first to use a page of Ray's object store pays for it, up to
    0.5 ms per image. A run of days does so once."""
    resumes: int
    ingests: int
    read_groups: int
    """Row groups of the dataset that reading is measured with."""
    scaling: tuple[int, ...]


QUICK = Amount(48, 1, 1, 2, 1, 1, 32, (1_000, 10_000))
FULL = Amount(256, RUNS, RUNS, 24, 3, 3, 96, (1_000, 10_000, 100_000))


def measure_crops(encoded: Sequence[bytes], turns: int) -> dict[str, Spread]:
    """Images per CPU-second of every candidate."""
    work = {name: (lambda run=run: run(encoded)) for name, run in candidates(encoded).items()}
    # CPU time, not time: of all threads of this process, whatever else the machine does.
    costs = in_turns(work, runs=turns, clock=time.process_time)
    return {name: cost.per(len(encoded)) for name, cost in costs.items()}


def measure_ingest(paths: Sequence[Path], scratch: Path, runs: int) -> tuple[Setup, Spread]:
    """The photographs as a dataset and as tar files; images per second of wall time of the ingest, Ray being there."""
    source = scratch / "source"
    source.mkdir()
    for path in paths:
        shutil.copy(path, source)  # links out of a source are refused
    few = scratch / "few"
    few.mkdir()
    for path in paths[:_WARM_UP_IMAGES]:
        shutil.copy(path, few)
    rates = []
    with local_ray(num_cpus=2):
        ingest(few, open_store(str(scratch / "warm-up")), _NAME)
        for run in range(runs):
            root = scratch / f"root{run}"
            result = ingest(source, open_store(str(root)), _NAME)
            rates.append(result.images / result.duration_s)
            tell(f"ingest {run + 1} of {runs}: {result.images} images in {result.duration_s:.1f} s")
    (scratch / "tars").mkdir()
    tars = write_tars(sorted(source.iterdir()), scratch / "tars", _TAR_IMAGES)
    return Setup(str(root), _NAME, result.manifest_sha256, tars), Spread(tuple(rates))


def measure_streams(setup: Setup, amount: Amount, dense_root: str) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Images per CPU-second of every way to a worker, and what else the product's own way tells."""
    with peers(setup) as running:
        (product,) = running["ray"]
        product.ask("run", images=amount.settling_chunks * TURN_IMAGES)
        measured = Turns(running, _TURN_CHUNKS * TURN_IMAGES, amount.stream_turns)
        libraries = libraries_mib()
        memory = product.ask("memory", images=TURN_IMAGES, paused_s=_PAUSED_S)
        idle = product.ask("idle", seconds=_IDLE_S)
        product.ask("stop")
        first_batch = _first_batches(product, amount.resumes)
        read, used = product.ask("epoch", root=dense_root, name=DENSE)
    details = {
        "first_batch_s": {at: seconds.summary("s") for at, seconds in first_batch.items()},
        "images_per_s": {name: significant(measured.per_s(name).median) for name in NAMES},
        "cpu_ms_per_image": {name: measured.cpu_ms_per_image(name) for name in NAMES},
        "idle_cpu_per_s": {kind: significant(share) for kind, share in idle.items()},
        "libraries_mib": round(libraries),
        "memory_mib": {kind: round(peak - (0 if kind == "objects" else libraries)) for kind, peak in memory.items()},
        "bytes_read_over_used": {"1 worker through Ray": significant(read / used)},
    }
    return {f"{name}_stream": measured.per_cpu_s(name) for name in NAMES}, details


def _first_batches(product: PeerProcess, runs: int) -> dict[str, Spread]:
    seconds: dict[str, list[float]] = {label: [] for label in _RESUMES}
    for _ in range(runs):
        for label, at in _RESUMES.items():
            seconds[label].append(product.ask("first_batch", at=at))
    tell(
        f"first batch after a resume, s: { {label: [round(each, 1) for each in of] for label, of in seconds.items()} }"
    )
    return {label: Spread(tuple(of)) for label, of in seconds.items()}


def measure_reading(root: str) -> dict[str, float]:
    """Bytes read over bytes used, without Ray."""
    found = {
        "1 worker": measure_epoch(root, DENSE, 1).ratio,
        f"{MOST_WORKERS} workers": measure_epoch(root, DENSE, MOST_WORKERS).ratio,
        "selection of 10 %": measure_epoch(root, SPARSE, 1).ratio,
        "selection of 10 %, predicted": predicted_ratio(open_store(root), SPARSE),
    }
    tell(f"bytes read over bytes used: { {name: round(ratio, 2) for name, ratio in found.items()} }")
    return {name: significant(ratio) for name, ratio in found.items()}


def result_of(rates: dict[str, Spread], ingested: Spread, details: dict[str, Any]) -> BenchResult:
    """Ratios of the rates; what else was found is told in ``details`` and, the most of it, in notes."""
    spreads = {
        "crops_vs_pillow": rates["crops"].over(rates["pillow_crops"]),
        "crops_vs_decode_only": rates["crops_without_colours"].over(rates["decode_and_cut"]),
        "ray_vs_inline": rates["ray_stream"].over(rates["inline_stream"]),
        "ray_vs_dataloader": rates["ray_stream"].over(rates["dataloader_stream"]),
        "ray_vs_webdataset": rates["ray_stream"].over(rates["webdataset_stream"]),
    }
    ratios: dict[str, float | None] = {name: spread.median for name, spread in spreads.items()}
    reference = rates["pillow_crops"].over(rates["pillow_decode"]).median
    notes = _notes(details, reference)
    if reference < _REFERENCE_FRACTION:
        ratios["crops_vs_pillow"] = None
        notes.append(f"crops_vs_pillow is void: the reference is slower than {_REFERENCE_FRACTION} of decoding.")
    ratios["first_batch_s"] = max(seconds["median"] for seconds in details["first_batch_s"].values())
    measured = {name: rate.summary("images/CPU-s") for name, rate in rates.items()}
    measured |= {name: spread.summary("ratio") for name, spread in spreads.items()}
    measured["ingest"] = ingested.summary("images/s")
    measured |= {f"first batch at {at}": seconds for at, seconds in details["first_batch_s"].items()}
    return BenchResult(
        bench="ingest",
        ratios=ratios,
        floor_fraction=rates["crops"].over(rates["decode_and_cut"]).median,
        details={**details, "pillow_crops_over_decode": significant(reference), "measured": measured, "notes": notes},
    )


def _notes(details: dict[str, Any], reference: float) -> list[str]:
    tables = {
        "CPU ms per image of the streams": details["cpu_ms_per_image"],
        "Images per second of wall time": details["images_per_s"],
        "Bytes read over bytes used": details["bytes_read_over_used"],
        f"Memory per worker in MiB, peak, without {details['libraries_mib']} of libraries": details["memory_mib"],
        "Stated bounds": details["stated_mib"],
        "Cores that an idle stream takes": details["idle_cpu_per_s"],
    }
    return [
        f"Images: {details['images_from']}. Pillow's crops reach {reference:.3g} of Pillow's decoder.",
        *(f"{title}: {_inline(values)}." for title, values in tables.items()),
        "Ingest of small images in rounds of 10,000:\n\n"
        + scaling_table([Scaling(**each) for each in details["ingest"]]),
    ]


def _inline(values: dict[str, Any]) -> str:
    """``name value`` of each, the values of nested ones in brackets."""
    parts = (
        f"{name} ({_inline(each)})" if isinstance(each, dict) else f"{name} {each}" for name, each in values.items()
    )
    return ", ".join(parts)


def measure(quick: bool) -> BenchResult:
    """The bench."""
    amount = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in ("generated", "scaling"):
            (scratch / name).mkdir()
        paths, images_from = photographs(scratch / "generated", _PHOTOGRAPHS)
        encoded = [path.read_bytes() for path in paths[: amount.encoded]]
        mean_bytes = statistics.mean(map(len, encoded))
        tell(f"{len(paths)} images ({images_from}), {mean_bytes / 2**10:.0f} KiB on average")
        rates = measure_crops(encoded, amount.crop_turns)
        setup, ingested = measure_ingest(paths, scratch, amount.ingests)
        dense_root = str(scratch / "reading")
        write_datasets(open_store(dense_root), scratch, amount.read_groups)
        streams, streaming = measure_streams(setup, amount, dense_root)
        reading = streaming.pop("bytes_read_over_used") | measure_reading(dense_root)
        scaling = measure_scaling(amount.scaling, scratch / "scaling", _ROUND_IMAGES)
        tell(f"ingest of small images:\n{scaling_table(scaling)}")
    stated = stated_mib(mean_bytes, _CROP_BYTES, round(DEFAULT_LAYOUT.group_rows * mean_bytes))
    details = {
        "images_from": images_from,
        "images": len(encoded),
        "images_streamed": len(paths),
        "slot_images": SLOT_IMAGES,
        "mean_kib": round(mean_bytes / 2**10, 1),
        **streaming,
        "stated_mib": {kind: round(bound) for kind, bound in stated.items()},
        "bytes_read_over_used": reading,
        "ingest": [asdict(each) for each in scaling],
    }
    return result_of({**rates, **streams}, ingested, details)


if __name__ == "__main__":
    run_bench("ingest", __doc__, measure)
