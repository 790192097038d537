"""From a dataset to crops on and on, in several ways that bench_ingest.py compares: each in a process of its own.

``python stream_peers.py NAME SETUP`` answers requests (a line of JSON each, see ``Peer``) until its input ends. Every
way makes the crops of the default recipe by ``slot_crops``, ``SLOT_BATCH`` images at a time.

    inline: reads verified rows in the order of a run, and makes all that a step takes, in one process without Ray.
    ray: the product's own path to a worker of a run: Ray Data, ``Feed`` and its processes. See ``ray_peer.py``.
    dataloader: torch's DataLoader over the row groups of the same Parquet files, read by pyarrow, shuffled in windows.
    webdataset: the same images in tar files, shuffled alike.

All but ``inline`` have ``PROCESSES`` processes that make crops. DataLoader and webdataset check no hash, draw no masks
and cannot resume.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import AugmentationConfig
from heliostat.data.crops import slot_crops
from heliostat.data.samples import PinnedDataset, Samples, SampleSource, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import plan_chunks
from heliostat.storage import open_store
from heliostat.training.feed import prepare_slot
from process_tree import cpu_spent, tree_use

SLOT_BATCH, SLOTS = 64, 2
"""The recipe's default, and two of them per step, as two processes make crops."""
PROCESSES = 2
TURN_IMAGES = 512
"""A turn takes a multiple of it: a chunk of the stream, so that what is read ahead is the same before and after."""
_WARM_UP = 2 * SLOT_BATCH * SLOTS
"""Images that had been made ahead when a turn began."""
_WINDOW_GROUPS = 4
_SHUFFLED = 512
"""Images that the other loaders shuffle together: as many as the product."""
_CONFIG = AugmentationConfig()
_SEED = 0
_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Setup:
    """Where the images are."""

    root: str
    name: str
    manifest_sha256: str
    tars: list[str]

    @property
    def recipe(self) -> PretrainRecipe:
        """The default one, of a long run."""
        return PretrainRecipe.model_validate(
            {
                "kind": "pretrain",
                "name": "bench",
                "dataset": {"name": self.name, "window_groups": _WINDOW_GROUPS},
                "training": {"steps": _STEPS, "global_batch": SLOTS * SLOT_BATCH, "slot_batch": SLOT_BATCH},
                "streaming": {"crop_processes": PROCESSES},
            }
        )

    @property
    def source(self) -> SampleSource:
        """The dataset in the order of that run."""
        pinned = PinnedDataset(self.name, self.manifest_sha256)
        return SampleSource(open_store(self.root), (pinned,), _SEED, _WINDOW_GROUPS)

    @property
    def plan(self) -> SlotPlan:
        """One worker has all slots."""
        return SlotPlan(SLOTS, 1)


class Peer:
    """Makes crops on and on; its methods are the requests."""

    def __init__(self, made: Iterator[int]) -> None:
        self._made = made

    def run(self, images: int) -> dict[str, Any]:
        """Make so many images: wall time, and CPU time by kind of process."""
        self._take(_WARM_UP)
        before, started_s = tree_use(), time.monotonic()
        taken = self._take(images)
        wall_s = time.monotonic() - started_s
        return {"images": taken, "wall_s": wall_s, "cpu_s": cpu_spent(before, tree_use())}

    def _take(self, images: int) -> int:
        taken = 0
        while taken < images:
            taken += next(self._made)
        return taken


def inline(setup: Setup) -> Iterator[int]:
    """What the product does in several processes, in one."""
    recipe, source = setup.recipe, setup.source
    share = WorkerShare(setup.plan, 0, SLOT_BATCH)
    plan = plan_chunks(share, source.image_bytes, source.order.window_rows, 0, _STEPS)
    for chunk in range(plan.chunks):
        steps = plan.steps(chunk)
        table = source.read([position for step in steps for position in share.positions(step)])
        samples = Samples(*(table[name].to_pylist() for name in ("position", "id", "image")))
        for index in range(len(steps) * SLOTS):
            part = samples.part(index * SLOT_BATCH, (index + 1) * SLOT_BATCH)
            prepare_slot(recipe, steps[index // SLOTS], index % SLOTS, part)
            yield SLOT_BATCH


def _crops_of(position: int, images: list[bytes]) -> tuple[Tensor, Tensor]:
    crops = slot_crops(_CONFIG, _SEED, range(position, position + len(images)), images)
    return torch.from_numpy(crops.global_crops), torch.from_numpy(crops.local_crops)


class _RowGroups(IterableDataset[tuple[Tensor, Tensor]]):
    """Shuffled slots of the row groups of Parquet files; each process of a loader reads its share of the groups."""

    def __init__(self, paths: list[Path]) -> None:
        self._groups = [
            (path, group) for path in paths for group in range(pq.ParquetFile(path, memory_map=True).num_row_groups)
        ]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        position = 0
        for images in self._windows():
            for first in range(0, len(images) - SLOT_BATCH + 1, SLOT_BATCH):
                yield _crops_of(position, images[first : first + SLOT_BATCH])
                position += SLOT_BATCH

    def _windows(self) -> Iterator[list[bytes]]:
        info = get_worker_info()
        process, processes = (info.id, info.num_workers) if info else (0, 1)
        for epoch in count():
            rng = random.Random(epoch)
            groups = rng.sample(self._groups, len(self._groups))[process::processes]
            images: list[bytes] = []
            for path, group in groups:
                images += pq.ParquetFile(path).read_row_group(group, columns=["image"])["image"].to_pylist()
                if len(images) >= _SHUFFLED:
                    rng.shuffle(images)
                    yield images
                    images = []
            rng.shuffle(images)
            yield images


def dataloader(setup: Setup) -> Iterator[int]:
    """torch's DataLoader over the same files."""
    paths = sorted(Path(setup.root).glob(f"datasets/{setup.name}/shards/*.parquet"))
    for whole, _ in DataLoader(_RowGroups(paths), batch_size=None, num_workers=PROCESSES):
        yield len(whole) // 2


def _tar_slot(images: list[tuple[bytes]]) -> tuple[Tensor, Tensor]:
    return _crops_of(0, [image for (image,) in images])


def write_tars(paths: list[Path], folder: Path, per_tar: int) -> list[str]:
    """The images as webdataset has them."""
    written = []
    for first in range(0, len(paths), per_tar):
        written.append(str(folder / f"{first:06}.tar"))
        with webdataset.TarWriter(written[-1]) as writer:
            for path in paths[first : first + per_tar]:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes()})
    return written


def tars(setup: Setup) -> Iterator[int]:
    """webdataset."""
    loaded = webdataset.WebDataset(setup.tars, shardshuffle=len(setup.tars), seed=_SEED).shuffle(_SHUFFLED)
    slots = loaded.to_tuple("jpg").batched(SLOT_BATCH, collation_fn=None, partial=False).map(_tar_slot).repeat()
    for whole, _ in webdataset.WebLoader(slots, batch_size=None, num_workers=PROCESSES):
        yield len(whole) // 2


LOADERS: dict[str, Callable[[Setup], Iterator[int]]] = {
    "inline": inline,
    "dataloader": dataloader,
    "webdataset": tars,
}


def serve(peer: Peer, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        answer = getattr(peer, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(name: str, setup: Setup) -> None:
    """Be a peer; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        if name != "ray":
            serve(Peer(LOADERS[name](setup)), sys.stdin, answers)
            return
        from ray_peer import RayPeer

        with RayPeer(setup) as peer:
            serve(peer, sys.stdin, answers)


def command_line(name: str, setup: Setup) -> list[str]:
    """What starts a peer."""
    return [sys.executable, str(Path(__file__)), name, json.dumps(asdict(setup))]


if __name__ == "__main__":
    main(sys.argv[1], Setup(**json.loads(sys.argv[2])))
