"""Backbones that were trained on colours normalised in another way are refused."""

import json
from pathlib import Path
from typing import Literal

import pytest
from support.backbones import small_backbone

import heliostat as library
from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.weights.export import export_backbone
from heliostat.models.weights.normalisation import check_normalisation

OURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("described", [OURS, {}, {"mean": OURS["mean"]}, None, {"mean": [0.4853, 0.456, 0.4059]}])
def test_check_normalisation__takes_ours_and_what_says_nothing(described: object) -> None:
    check_normalisation(described, "mean", "std", "config.json")


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
def test_check_normalisation__says_what_differs(changes: dict[str, object]) -> None:
    (key,) = changes
    with pytest.raises(IncompatibleCheckpointError, match=rf"normalises images in another way: {key} is .* there"):
        check_normalisation({**OURS, **changes}, "mean", "std", "config.json")


@pytest.mark.parametrize(
    ("dialect", "file", "keys"),
    [
        ("huggingface", "preprocessor_config.json", ("image_mean",)),
        ("timm", "config.json", ("pretrained_cfg", "mean")),
    ],
)
def test_load_backbone__refuses_a_folder_that_normalises_in_another_way(
    dialect: Literal["huggingface", "timm"], file: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    export_backbone(small_backbone(heads=2), dialect, tmp_path)
    library.load_backbone(tmp_path)
    described = json.loads((tmp_path / file).read_text())
    inside = described
    for key in keys[:-1]:
        inside = inside[key]
    assert inside[keys[-1]] == pytest.approx([0.485, 0.456, 0.406])
    inside[keys[-1]] = [0.5, 0.5, 0.5]
    (tmp_path / file).write_text(json.dumps(described))
    with pytest.raises(IncompatibleCheckpointError, match=rf"{keys[-1]} is \[0\.5, 0\.5, 0\.5\] there"):
        library.load_backbone(tmp_path)
