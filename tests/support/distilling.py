"""Small distillations: two students of different sizes of patches."""

from collections.abc import Mapping
from typing import Any

SMALL = {"arch": "custom", "embed_dim": 16, "depth": 2, "heads": 2, "patch_px": 4, "layer_scale": 1.0}
COARSE = {"arch": "custom", "embed_dim": 32, "depth": 1, "heads": 2, "patch_px": 8, "layer_scale": 1.0}


def students_of(pretrain: Mapping[str, Any], teacher: str, **training: Any) -> dict[str, Any]:
    """The values of a recipe that trains both from a run.

    Args:
        pretrain: Values of a pretraining recipe, whose data, objective and steps are taken.
        teacher: Name of the run.
        training: Other values of that section.
    """
    shared = {key: value for key, value in pretrain.items() if key not in ("kind", "model")}
    students = [{"name": "small", "model": SMALL}, {"name": "coarse", "model": COARSE, "base_lr": 0.008}]
    return {
        **shared,
        "kind": "distill",
        "teacher": {"run": teacher},
        "students": students,
        "training": {**shared["training"], **training},
    }
