"""The high-resolution stage: what a network that was trained at 96 px gains from a short stage at 160 px.

Ratios:
    segmentation_gain: mean IoU of a linear head on patch features of street images (camvid, 160 px high) after the
        stage over that of the same network without it, whose position embedding is resized as it is. Wanted: above 1.
    gain_over_longer_training: the same, over the network after as many more steps at 96 px.
    image_cost: smaller is better: seconds of an image at 160 px over those at 96 px, by the clock of the runs. The
        floor is the ratio of their patches, 2.78.

Networks are trained on photographs of objects (ukbench) and on the first 60 of 101 frames of the video; heads on the
same frames; asked are the last 36, five between are left out.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import above  # noqa: F401 -- processes that are started see this folder
import cv2
import numpy as np
import torch
import yaml
from PIL import Image

from frame import BenchResult, run_bench, significant, tell
from heliostat.config import ResolvedRecipe, load_recipe
from heliostat.data.ingest import ingest
from heliostat.models.backbones import Backbone
from heliostat.models.normalise import normalise
from heliostat.observe.metrics import read_metrics
from heliostat.storage import open_store
from heliostat.storage.layout import run_store
from heliostat_cluster.local import local_ray
from heliostat_evaluation.backbones import patch_features, trained_teacher
from heliostat_evaluation.segmentation import IGNORED, segment, train_head
from heliostat_jobs.run_report import median_rate
from heliostat_jobs.runs import load_run
from side_by_side import run_all

_BASE_PX, _PX, _LOCAL_PX = 96, 160, 48
_SEEDS, _QUICK_SEEDS = (0, 1), (0,)
_STEPS, _MORE_STEPS, _QUICK_STEPS = 200, 40, 4
_PROBES, _PROBE_STEPS, _QUICK_PROBE_STEPS = 1, 300, 20
_CLASSES, _VOID = 11, 11
_TRAINED_FRAMES, _LEFT_OUT = 60, 5
_PATCH_PX = 8


@dataclass(frozen=True, slots=True)
class Frames:
    """Street images with their masks."""

    images: torch.Tensor
    """(N, 3, 160, 216), normalised."""
    masks: torch.Tensor
    """(N, 180, 240)."""


def read_frames(paths: Sequence[Path]) -> Frames:
    """Frames at the height that networks see, and their masks at half their size."""
    images, masks = [], []
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        width = round(image.shape[1] * _PX / image.shape[0] / _PATCH_PX) * _PATCH_PX
        images.append(cv2.resize(image, (width, _PX), interpolation=cv2.INTER_AREA))
        mask = np.asarray(Image.open(path.parents[1] / "valannot" / path.name))[::2, ::2].astype(np.int64)
        masks.append(np.where(mask == _VOID, IGNORED, mask))
    return Frames(normalise(np.stack(images)), torch.from_numpy(np.stack(masks)))


@torch.inference_mode()
def features(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """(N, D, R, C)."""
    rows, columns = (side // _PATCH_PX for side in images.shape[2:])
    found = torch.cat([patch_features(backbone, part) for part in images.split(8)])
    grid: torch.Tensor = found.transpose(1, 2).unflatten(2, (rows, columns)).clone()
    return grid


@dataclass(frozen=True, slots=True)
class Runs:
    """The recipes of all runs under one root."""

    root: str
    folder: Path
    quick: bool

    def base(self, seed: int) -> ResolvedRecipe:
        """Pre-training at the low resolution."""
        return self._resolved(f"base-{seed}", "pretrain", seed, _BASE_PX, _STEPS, {})

    def after(self, name: str, seed: int, px: int) -> ResolvedRecipe:
        """A short stage at some resolution."""
        start = {"init_from": {"run": f"base-{seed}"}}
        return self._resolved(f"{name}-{seed}", "adapt", seed, px, _MORE_STEPS, start)

    def _resolved(
        self, name: str, kind: str, seed: int, px: int, steps: int, changes: dict[str, Any]
    ) -> ResolvedRecipe:
        values = yaml.safe_load((files("heliostat_jobs") / "recipes" / "demo.yaml").read_text())
        values |= {"kind": kind, "name": name, "seed": seed, "root": self.root, "dataset": {"name": "photographs"}}
        values |= changes
        values["model"] |= {"embed_dim": 96, "heads": 3, "patch_px": _PATCH_PX}
        values["augmentation"] |= {"global_px": px, "local_px": _LOCAL_PX, "local_count": 2}
        steps = min(steps, _QUICK_STEPS) if self.quick else steps
        values["training"] |= {"steps": steps, "global_batch": 32, "slot_batch": 16, "zero_stage": 0}
        if kind == "adapt":
            del values["training"]["warmup_steps"]
            values["training"] |= {"base_lr": 1e-3, "ema_momentum": 0.97}
        values["checkpoint"] = {"every_steps": steps}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path, [], {})


def write_dataset(root: str, data: Path, frames: Sequence[Path], folder: Path) -> None:
    """Photographs of objects and the frames to train on."""
    (folder / "frames").mkdir()
    for path in frames:
        shutil.copy(path, folder / "frames")
    with local_ray(num_cpus=2):
        for source in (data / "ukbench1692", folder / "frames"):
            ingest(source, open_store(root), "photographs")


def judged(root: str, run: str, sides: tuple[Frames, Frames], quick: bool) -> list[float]:
    """Mean IoU of a run's teacher, for each seed of the head."""
    store = open_store(root)
    backbone = trained_teacher(run_store(store, run), load_run(store, run)).backbone
    learned, asked = sides
    steps = _QUICK_PROBE_STEPS if quick else _PROBE_STEPS
    mine, theirs = features(backbone, learned.images), features(backbone, asked.images)
    heads = (train_head(mine, learned.masks, _CLASSES, steps=steps, seed=seed) for seed in range(_PROBES))
    return [segment(head, theirs, asked.masks).mean_iou for head in heads]


def rate(root: str, run: str) -> float:
    """Images per second of a run."""
    return median_rate(read_metrics(run_store(open_store(root), run)))


def measure(quick: bool) -> BenchResult:
    """All of it."""
    names = ("segmentation_gain", "gain_over_longer_training", "image_cost")
    if "HELIOSTAT_TEST_DATA" not in os.environ:
        return BenchResult("adapt", dict.fromkeys(names), None, {"left out": "HELIOSTAT_TEST_DATA is not set"})
    data = Path(os.environ["HELIOSTAT_TEST_DATA"])
    frames = sorted((data / "camvid" / "val").glob("*.png"))
    sides = read_frames(frames[:_TRAINED_FRAMES]), read_frames(frames[_TRAINED_FRAMES + _LEFT_OUT :])
    seeds = _QUICK_SEEDS if quick else _SEEDS
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(folder) / "root")
        runs = Runs(root, Path(folder), quick)
        write_dataset(root, data, frames[:_TRAINED_FRAMES], Path(folder))
        run_all([runs.base(seed) for seed in seeds], processes=2)
        run_all([runs.after("adapted", seed, _PX) for seed in seeds], processes=2)
        run_all([runs.after("longer", seed, _BASE_PX) for seed in seeds], processes=2)
        tell("all runs are trained")
        found = {
            name: [value for seed in seeds for value in judged(root, f"{name}-{seed}", sides, quick)]
            for name in ("base", "adapted", "longer")
        }
        cost = statistics.mean(rate(root, f"longer-{seed}") / rate(root, f"adapted-{seed}") for seed in seeds)
        seconds = {name: significant(1 / rate(root, f"{name}-{seeds[0]}")) for name in ("longer", "adapted")}
    means = {name: statistics.mean(values) for name, values in found.items()}
    ratios = (means["adapted"] / means["base"], means["adapted"] / means["longer"], cost)
    details = {
        "mean IoU by seed and head": {name: [significant(each) for each in values] for name, values in found.items()},
        "seconds of an image": seconds,
    }
    floor = (_PX / _BASE_PX) ** 2
    return BenchResult("adapt", dict(zip(names, ratios, strict=True)), floor / cost, details)


if __name__ == "__main__":
    run_bench("adapt", __doc__, measure)
