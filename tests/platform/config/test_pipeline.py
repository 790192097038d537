"""Recipes of pipelines: a graph of stages, each with its own recipe in it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from heliostat.config import ResolvedRecipe, check_same_run, identity, load_recipe, lock, relocked
from heliostat.config.pipeline import PipelineRecipe, in_order
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import recipe_of, with_values
from heliostat.errors import ChangedConfigError, ConfigError, InvalidValueError, RecipeNotFoundError, UnknownKeyError

TRAIN = {
    "kind": "pretrain",
    "name": "any",
    "dataset": {"name": "photos"},
    "model": {"arch": "vit_s"},
    "training": {"steps": 10},
}
JUDGE = {"kind": "evaluate", "name": "any", "bank": "photos", "queries": "photos-holdout"}
STAGES: list[dict[str, Any]] = [
    {"name": "judge", "recipe": "judge.yaml", "from": "train-2.best"},
    {"name": "train-{each}", "recipe": "train.yaml", "each": ["1", "2"], "set": ["training.steps=1{each}"]},
]


def load(folder: Path, stages: list[dict[str, Any]], name: str = "p", **train: Any) -> ResolvedRecipe:
    (folder / "train.yaml").write_text(yaml.safe_dump({**TRAIN, **train}))
    (folder / "judge.yaml").write_text(yaml.safe_dump(JUDGE))
    pipeline = {"kind": "pipeline", "name": name, "root": "some-root", "stages": stages}
    (folder / "p.yaml").write_text(yaml.safe_dump(pipeline))
    return load_recipe(folder / "p.yaml", [], {})


def stages_of(resolved: ResolvedRecipe) -> dict[str, Any]:
    assert isinstance(resolved.recipe, PipelineRecipe)
    return {stage.name: recipe_of(stage.config or {}) for stage in resolved.recipe.expanded}


def test_load__brings_the_stages_recipes_with_names_roots_and_what_they_start_from(tmp_path: Path) -> None:
    stages = stages_of(load(tmp_path, STAGES))
    assert list(stages) == ["judge", "train-1", "train-2"]
    assert {recipe.root for recipe in stages.values()} == {"some-root"}
    assert [recipe.name for recipe in stages.values()] == ["p-judge", "p-train-1", "p-train-2"]
    assert stages["judge"].run == "p-train-2"
    assert (stages["train-1"].training.steps, stages["train-2"].training.steps) == (11, 12)


def test_in_order__none_before_what_it_waits_for(tmp_path: Path) -> None:
    recipe = load(tmp_path, STAGES).recipe
    assert isinstance(recipe, PipelineRecipe)
    assert [stage.name for stage in in_order(recipe.expanded)] == ["train-1", "train-2", "judge"]


def test_lock__holds_everything_that_another_machine_needs(tmp_path: Path) -> None:
    resolved = load(tmp_path, STAGES)
    again = relocked(lock(resolved), resolved.text, "s3://elsewhere")
    assert again.recipe == resolved.recipe.model_copy(update={"root": "s3://elsewhere"})


def test_identity__is_that_of_the_stages_and_names_what_changed(tmp_path: Path) -> None:
    first, second = load(tmp_path, STAGES), load(tmp_path, STAGES, "q")
    check_same_run(identity(first.recipe), identity(second.recipe))
    changed = load(tmp_path, STAGES, training={"steps": 10, "base_lr": 1e-3})
    with pytest.raises(ChangedConfigError, match=r"train-1\.training\.base_lr 0\.004 -> 0\.001"):
        check_same_run(identity(first.recipe), identity(changed.recipe))
    more = load(tmp_path, STAGES, scaling={"workers": 2})
    check_same_run(identity(first.recipe), identity(more.recipe))


def test_with_values__sets_by_dotted_key() -> None:
    recipe = PretrainRecipe.model_validate(TRAIN)
    assert with_values(recipe, {"training.steps": 3}).training.steps == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ([{"name": "a", "recipe": "train.yaml"}] * 2, InvalidValueError, "'a' 2 times"),
        ([{"name": "a", "recipe": "train.yaml", "each": ["1", "2"]}], InvalidValueError, "'a' 2 times"),
        ([{"name": "a", "recipe": "train.yaml", "after": ["b"]}], InvalidValueError, "after b, which there is not"),
        (
            [
                {"name": "a", "recipe": "train.yaml", "after": ["b"]},
                {"name": "b", "recipe": "train.yaml", "after": ["a"]},
            ],
            InvalidValueError,
            "wait for one another: ",
        ),
        ([{"name": "a", "recipe": "nowhere.yaml"}], RecipeNotFoundError, "nowhere"),
        ([{"name": "a", "recipe": "train.yaml", "set": ["training.stepz=3"]}], UnknownKeyError, "stage a: unknown key"),
        ([{"name": "a", "recipe": "p.yaml"}], InvalidValueError, "pipeline itself"),
        ([{"name": "a", "recipe": "train.yaml", "form": "b.best"}], UnknownKeyError, r"stages\[0\]\.form"),
        ([{"name": "a", "recipe": "train.yaml", "from": "b"}], InvalidValueError, r"stages\[0\]\.from"),
        (
            [{"name": "a", "recipe": "train.yaml"}, {"name": "b", "recipe": "train.yaml", "from": "a.best"}],
            InvalidValueError,
            "kind pretrain, which cannot start from a.best",
        ),
        ([], InvalidValueError, "stages"),
    ],
)
def test_load__names_what_is_wrong(
    tmp_path: Path, stages: list[dict[str, Any]], error: type[ConfigError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(tmp_path, stages)
