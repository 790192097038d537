import json
from pathlib import Path

import pytest

from heliostat.config import (
    Recipe,
    ResolvedRecipe,
    check_same_run,
    diff_recipes,
    identity,
    load_recipe,
    lock,
    locked_identity,
)
from heliostat.config.keys import values_of
from heliostat.errors import ChangedConfigError

TEXT = "kind: pretrain\nname: demo\ndataset: {name: digits}\ntraining: {steps: 300}\n"


def resolved(folder: Path, *overrides: str, text: str = TEXT) -> ResolvedRecipe:
    file = folder / "r.yaml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, overrides, {})


def recipe(folder: Path, *overrides: str) -> Recipe:
    return resolved(folder, *overrides).recipe


def test_lock__holds_every_value_with_its_origin_as_json(tmp_path: Path) -> None:
    one = resolved(tmp_path, "seed=3")
    locked = json.loads(json.dumps(lock(one)))
    assert locked["kind"] == "pretrain"
    assert locked["values"]["seed"] == {"value": 3, "origin": "--set"}
    assert locked["values"]["training.steps"] == {"value": 300, "origin": "r.yaml:4"}
    assert {key: entry["value"] for key, entry in locked["values"].items()} == values_of(one.recipe)


@pytest.mark.parametrize(
    "override",
    ["name=other", "root=s3://b/p", "scaling.workers=2", "observe.log_every_steps=9", "checkpoint.keep_last=1"],
)
def test_identity__leaves_out_where_and_how_a_run_is_computed(tmp_path: Path, override: str) -> None:
    old = locked_identity(json.loads(json.dumps(lock(resolved(tmp_path)))))
    check_same_run(old, identity(recipe(tmp_path, override)))


def test_check_same_run__lists_what_changed(tmp_path: Path) -> None:
    old = locked_identity(json.loads(json.dumps(lock(resolved(tmp_path)))))
    new = identity(recipe(tmp_path, "seed=1", "model.arch=vit_b", "dataset.name=other"))
    with pytest.raises(ChangedConfigError) as caught:
        check_same_run(old, new)
    for change in ("seed 0 -> 1", "model.embed_dim 384 -> 768", "dataset.name digits -> other"):
        assert change in str(caught.value)
    assert "steps" not in str(caught.value)


def test_check_same_run__a_key_of_a_later_version_changes_nothing_at_its_default(tmp_path: Path) -> None:
    locked = json.loads(json.dumps(lock(resolved(tmp_path))))
    del locked["values"]["objective.koleo_neighbours"]
    check_same_run(locked_identity(locked), identity(recipe(tmp_path)))
    with pytest.raises(ChangedConfigError, match="koleo_neighbours 1 -> 2"):
        check_same_run(locked_identity(locked), identity(recipe(tmp_path, "objective.koleo_neighbours=2")))


def test_check_same_run__a_key_that_one_side_lacks_is_a_change() -> None:
    with pytest.raises(ChangedConfigError, match="a 1 -> nothing, b nothing -> 2"):
        check_same_run({"a": 1}, {"b": 2})


def test_diff_recipes__pairs_of_resolved_values(tmp_path: Path) -> None:
    left, right = recipe(tmp_path), recipe(tmp_path, "training.steps=5", "augmentation.local_scale=[0.1, 0.2]")
    assert diff_recipes(left, left) == []
    assert diff_recipes(left, right) == [
        ("augmentation.local_scale", [0.05, 0.32], [0.1, 0.2]),
        ("training.steps", 300, 5),
    ]
