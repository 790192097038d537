"""The high-resolution stage: what a network that was trained at 96 px gains from a short stage at 160 px.

Ratios:
    segmentation_gain: mean IoU of a linear head on patch features of street images (camvid, 160 px high) after the
        stage over that of the same network without it, whose position embedding is resized as it is. Wanted: above 1.
    gain_over_longer_training: the same, over the network after as many more steps at 96 px.
    image_cost: smaller is better: seconds of an image at 160 px over those at 96 px, by the clock of the runs, median
        of the seeds. Networks see 2.42 times as many patches; photographs are decoded alike, so it may be less.

Floor: none is stated.

Networks are trained on photographs (ukbench1692) and, as often, on the first 60 of 101 frames of the video; heads on
the same frames; asked are the last 36, five between are left out. Sizes, steps and rates were chosen with seed 100,
which is not measured; the details have the differences with their 95 % intervals over the seeds.
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
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.ingest import ingest
from heliostat.models.backbones import Backbone
from heliostat.models.normalise import normalise
from heliostat.observe.metrics import read_metrics
from heliostat.storage import open_store
from heliostat.storage.layout import run_store
from heliostat_cluster.local import local_ray
from heliostat_evaluation.backbones import patch_features, trained_teacher, untrained_backbone
from heliostat_evaluation.segmentation import IGNORED, segment, train_head
from heliostat_jobs.run_report import median_rate
from heliostat_jobs.runs import load_run
from over_seeds import difference
from side_by_side import run_all

_BASE_PX, _PX, _LOCAL_PX = 96, 160, 48
_SEEDS, _QUICK_SEEDS = (0, 1, 2), (0,)
_STEPS, _MORE_STEPS, _QUICK_STEPS = 400, 80, 4
_PROBES, _PROBE_STEPS, _QUICK_PROBE_STEPS = 2, 1500, 20
_CLASSES, _VOID = 11, 11
_TRAINED_FRAMES, _LEFT_OUT = 60, 5
_PATCH_PX = 16
_MASK_OF = 4
_PHOTOGRAPHS, _FRAMES = "photographs", "frames"


@dataclass(frozen=True, slots=True)
class Frames:
    """Street images with their masks."""

    images: torch.Tensor
    """(N, 3, 160, 208), normalised."""
    masks: torch.Tensor
    """(N, 90, 120)."""


def read_frames(paths: Sequence[Path]) -> Frames:
    """Frames at the height that networks see, and their masks at a quarter of their size."""
    images, masks = [], []
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        width = round(image.shape[1] * _PX / image.shape[0] / _PATCH_PX) * _PATCH_PX
        images.append(cv2.resize(image, (width, _PX), interpolation=cv2.INTER_AREA))
        mask = np.asarray(Image.open(path.parents[1] / "valannot" / path.name))[::_MASK_OF, ::_MASK_OF].astype(np.int64)
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
        values |= {
            "kind": kind,
            "name": name,
            "seed": seed,
            "root": self.root,
            "dataset": {"mix": [f"{_PHOTOGRAPHS}=0.5", f"{_FRAMES}=0.5"]},
        }
        values |= changes
        values["model"] |= {"embed_dim": 96, "heads": 3, "patch_px": _PATCH_PX}
        values["augmentation"] |= {"global_px": px, "local_px": _LOCAL_PX, "local_count": 2}
        steps = min(steps, _QUICK_STEPS) if self.quick else steps
        values["training"] |= {"steps": steps, "global_batch": 64, "slot_batch": 64, "zero_stage": 0}
        if kind == "adapt":
            del values["training"]["warmup_steps"]
            values["training"] |= {"base_lr": 1e-3, "ema_momentum": 0.97}
        values["scaling"] = {"workers": 1}
        values["checkpoint"] = {"every_steps": steps}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path, [], {})


def write_datasets(root: str, data: Path, frames: Sequence[Path], folder: Path) -> None:
    """Photographs, and the frames to train on."""
    (folder / _FRAMES).mkdir()
    for path in frames:
        shutil.copy(path, folder / _FRAMES)
    with local_ray(num_cpus=2):
        for source, name in ((data / "ukbench1692", _PHOTOGRAPHS), (folder / _FRAMES, _FRAMES)):
            ingest(source, open_store(root), name)


def judged(backbone: Backbone, sides: tuple[Frames, Frames], quick: bool) -> float:
    """Mean IoU of a network, the mean of some heads."""
    learned, asked = sides
    steps = _QUICK_PROBE_STEPS if quick else _PROBE_STEPS
    mine, theirs = features(backbone, learned.images), features(backbone, asked.images)
    heads = (train_head(mine, learned.masks, _CLASSES, steps=steps, seed=seed) for seed in range(_PROBES))
    return statistics.mean(segment(head, theirs, asked.masks).mean_iou for head in heads)


def trained(root: str, run: str) -> Backbone:
    """The network that a run delivers."""
    store = open_store(root)
    return trained_teacher(run_store(store, run), load_run(store, run)).backbone


def untrained(base: ResolvedRecipe) -> Backbone:
    """The network that a run began with."""
    assert isinstance(base.recipe, PretrainRecipe)
    return untrained_backbone(base.recipe)


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
        write_datasets(root, data, frames[:_TRAINED_FRAMES], Path(folder))
        bases = [runs.base(seed) for seed in seeds]
        run_all(bases, processes=2)
        stages = (("adapted", _PX), ("longer", _BASE_PX))
        run_all([runs.after(name, seed, px) for name, px in stages for seed in seeds], processes=2)
        tell("all runs are trained")
        found = {"untrained": [judged(untrained(base), sides, quick) for base in bases]}
        for name in ("base", "adapted", "longer"):
            found[name] = [judged(trained(root, f"{name}-{seed}"), sides, quick) for seed in seeds]
        costs = [rate(root, f"longer-{seed}") / rate(root, f"adapted-{seed}") for seed in seeds]
        seconds = {
            name: significant(statistics.median(1 / rate(root, f"{name}-{seed}") for seed in seeds))
            for name in ("longer", "adapted")
        }
    means = {name: statistics.mean(values) for name, values in found.items()}
    cost = statistics.median(costs)
    ratios = (means["adapted"] / means["base"], means["adapted"] / means["longer"], cost)
    details = {
        "mean IoU by seed": {name: [significant(each) for each in values] for name, values in found.items()},
        "base - untrained": difference(found["base"], found["untrained"]),
        "adapted - base": difference(found["adapted"], found["base"]),
        "adapted - longer": difference(found["adapted"], found["longer"]),
        "seconds of an image, a core": seconds,
    }
    return BenchResult("adapt", dict(zip(names, ratios, strict=True)), None, details)


if __name__ == "__main__":
    run_bench("adapt", __doc__, measure)
