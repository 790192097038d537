"""Small distillations: students of different sizes of patches, one of them convolutional."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from support.projects import heliostat, store_images, write_recipe
from support.worlds import tiny_recipe

from heliostat.storage import open_store

STEPS = 4

SMALL = {"arch": "custom", "embed_dim": 16, "depth": 2, "heads": 2, "patch_px": 4, "layer_scale": 1.0}
COARSE = {"arch": "custom", "embed_dim": 32, "depth": 1, "heads": 2, "patch_px": 8, "layer_scale": 1.0}
CONV = {
    "arch": "convnext_custom",
    "depths": [1, 1, 2, 1],
    "dims": [8, 8, 16, 24],
    "patch_px": 8,
    "layer_scale": 1.0,
}


FEATURES: dict[str, Any] = {"features": {"weight": 1.0}, "teacher_width": 32}
"""Of the objective: the features of ``tiny``, besides its prototypes."""
FEATURES_ALONE: dict[str, Any] = {**FEATURES, "dino_weight": 0.0, "ibot_weight": 0.0}
LABELS: dict[str, Any] = {"labels": {"weight": 1.0, "classes": 3}, "teacher_width": 32}
"""And labels, for students with a register."""


def students_of(pretrain: Mapping[str, Any], teacher: str, **training: Any) -> dict[str, Any]:
    """The values of a recipe that trains all of them from a run.

    Args:
        pretrain: Values of a pretraining recipe, whose data, objective and steps are taken.
        teacher: Name of the run.
        training: Other values of that section.
    """
    shared = {key: value for key, value in pretrain.items() if key not in ("kind", "model")}
    students = [
        {"name": "small", "model": SMALL},
        {"name": "coarse", "model": COARSE, "base_lr": 0.008},
        {"name": "conv", "model": CONV},
    ]
    return {
        **shared,
        "kind": "distill",
        "teacher": {"run": teacher},
        "students": students,
        "training": {**shared["training"], **training},
    }


def pretrained_project(folder: Path) -> Path:
    """A project with a finished pretraining run, ``tiny``; the folder."""
    root = open_store(str(folder / "root"))
    store_images(root)
    heliostat("run", str(write_recipe(folder / "pretrain.yaml", root.url, steps=2)), "--single-process")
    return folder


def distill_recipe_at(project: Path, name: str, **changes: Any) -> Path:
    """The file of a recipe that trains all students from ``tiny``, in ``STEPS`` steps."""
    pretrain = json.loads(tiny_recipe(steps=STEPS).model_dump_json())
    tree = {
        **students_of(pretrain, "tiny"),
        "name": name,
        "root": open_store(str(project / "root")).url,
        "checkpoint": {"every_steps": 2},
        "observe": {"flush_interval_s": 0.2, "log_every_steps": 1},
        **changes,
    }
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
