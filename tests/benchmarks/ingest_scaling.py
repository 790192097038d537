"""How the time and the memory of an ingest grow with the number of images: each size in a process of its own.

The images are small (64 x 48 px, some 1.5 KB), so what is measured is what an ingest does per image beside decoding it.
Time should be linear in the images, memory flat: on the driver up to the size of a round, in the tasks altogether.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from heliostat.data.ingest import IngestOptions, ingest
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray

_WIDTH_PX, _HEIGHT_PX = 64, 48
_PER_FOLDER = 1000
_WARM_UP_IMAGES = 300
_ROUND_ITEMS = IngestOptions().round_items
_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Scaling:
    """One size. Peaks are resident memory of the driver's own, and of the largest process of a task."""

    images: int
    wall_s: float
    images_per_s: float
    driver_before_mib: float
    driver_peak_mib: float
    task_peak_mib: float


def measure_scaling(sizes: Sequence[int], scratch: Path, round_items: int = _ROUND_ITEMS) -> list[Scaling]:
    """Ingest so many images each into a new dataset below ``scratch``, in rounds of so many."""
    results = []
    for images in sizes:
        source = scratch / f"source-{images}"
        write_images(source, images)
        run = subprocess.run(
            [sys.executable, __file__, str(source), str(scratch / f"root-{images}"), str(round_items)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results.append(Scaling(**json.loads(run.stdout.splitlines()[-1])))
    return results


def scaling_table(results: Sequence[Scaling]) -> str:
    """The results for people, as Markdown."""
    lines = ["| images | s | images/s | driver MiB, before → peak | largest task MiB |", "|---|---|---|---|---|"]
    lines += [
        f"| {each.images:,} | {each.wall_s:.1f} | {each.images_per_s:,.0f} | {each.driver_before_mib:.0f} → "
        f"{each.driver_peak_mib:.0f} | {each.task_peak_mib:.0f} |"
        for each in results
    ]
    return "\n".join(lines)


def write_images(folder: Path, count: int) -> None:
    """Different small JPEG files, a thousand in each sub-folder."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (_HEIGHT_PX // 8, _WIDTH_PX // 8, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((_WIDTH_PX, _HEIGHT_PX)).save(buffer, "JPEG", quality=80)
    head, tail = buffer.getvalue()[:2], buffer.getvalue()[2:]
    for index in range(count):
        path = folder / f"{index // _PER_FOLDER:04}" / f"{index:08}.jpg"
        if index % _PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        comment = b"\xff\xfe\x00\x0a" + index.to_bytes(8, "big")  # another content, the same picture
        path.write_bytes(head + comment + tail)


def run_one(source: Path, root: Path, round_items: int) -> Scaling:
    """One ingest on a Ray of its own, after a small one that starts its workers."""
    warm_up = root.with_name(f"{root.name}-warm-up")
    write_images(warm_up / "source", _WARM_UP_IMAGES)
    with local_ray(num_cpus=os.cpu_count() or 1):
        ingest(warm_up / "source", open_store(str(warm_up)), "warm-up")
        before = _resident_mib(os.getpid())
        with _sampled() as peaks:
            started = time.monotonic()
            result = ingest(source, open_store(str(root)), "scaling", IngestOptions(round_items=round_items))
            wall_s = time.monotonic() - started
    return Scaling(result.images, wall_s, result.images / wall_s, before, peaks["driver"], peaks["task"])


@contextmanager
def _sampled() -> Iterator[dict[str, float]]:
    peaks = {"driver": 0.0, "task": 0.0}
    stopping = threading.Event()

    def look() -> None:
        while not stopping.wait(_SAMPLE_S):
            peaks["driver"] = max(peaks["driver"], _resident_mib(os.getpid()))
            peaks["task"] = max([peaks["task"], *map(_resident_mib, _task_processes())])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stopping.set()
        thread.join()


def _task_processes() -> list[int]:
    """This session's Ray workers and the children that decode for them."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(status.parent.name)] = int(fields[1])
    return [process for process in parents if _descends(process, parents) and _is_task(process)]


def _descends(process: int, parents: dict[int, int]) -> bool:
    while process > 1 and process != os.getpid():
        process = parents.get(process, 0)
    return process == os.getpid()


def _is_task(process: int) -> bool:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"ray::MapBatches") or b"heliostat.data.decoder_child" in command


def _resident_mib(process: int) -> float:
    """Memory of its own: pages of Ray's object store, which all processes see, have a bound of their own."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    own = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(own[0]) / 2**10 if own else 0.0


if __name__ == "__main__":
    print(json.dumps(asdict(run_one(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))))
