"""Backbones that were trained on colours normalised in another way are refused."""

import json
from pathlib import Path
from typing import Literal

import pytest
from support.backbones import small_backbone

import heliostat as library
from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.weights.export import export_backbone
from heliostat.models.weights.load import read_weights
from heliostat.models.weights.normalisation import other_normalisation, refuse_other_normalisation

OURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("described", [OURS, {}, {"mean": OURS["mean"]}, None, {"mean": [0.4853, 0.456, 0.4059]}])
def test_other_normalisation__is_nothing_for_ours_and_for_what_says_nothing(described: object) -> None:
    assert other_normalisation(described, "mean", "std") == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.5, 0.5, 0.5]},
        {"std": [1, 1, 1]},
        {"mean": [0.485]},
        {"mean": "imagenet"},
        {"std": [0.229, float("nan"), 0.225]},
        {"std": [0.229, None, 0.225]},
    ],
)
def test_other_normalisation__says_what_differs(changes: dict[str, object]) -> None:
    ((key, value),) = changes.items()
    (told,) = other_normalisation({**OURS, **changes}, "mean", "std")
    assert told.startswith(f"{key} is {value} there")


@pytest.mark.parametrize(
    ("dialect", "file", "keys"),
    [
        ("huggingface", "preprocessor_config.json", ("image_mean",)),
        ("timm", "config.json", ("pretrained_cfg", "mean")),
    ],
)
def test_refuse_other_normalisation__of_a_folder_that_says_so(
    dialect: Literal["huggingface", "timm"], file: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    export_backbone(small_backbone(heads=2), dialect, tmp_path)
    refuse_other_normalisation(read_weights(str(tmp_path)))
    described = json.loads((tmp_path / file).read_text())
    inside = described
    for key in keys[:-1]:
        inside = inside[key]
    assert inside[keys[-1]] == pytest.approx([0.485, 0.456, 0.406])
    inside[keys[-1]] = [0.5, 0.5, 0.5]
    (tmp_path / file).write_text(json.dumps(described))
    library.load_backbone(tmp_path)  # its user normalises
    with pytest.raises(IncompatibleCheckpointError, match=rf"{keys[-1]} is \[0\.5, 0\.5, 0\.5\] there"):
        refuse_other_normalisation(read_weights(str(tmp_path)))
