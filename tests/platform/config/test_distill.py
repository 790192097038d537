"""What a recipe of kind distill holds, and what it refuses before anything is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.distilling import CONV, LABELS, students_of
from support.worlds import tiny_recipe

from heliostat.config import load_recipe, lock, unlock
from heliostat.config.convnext import ConvNextConfig
from heliostat.config.distill import DistillRecipe, check_teacher_backbone
from heliostat.config.kinds import recipe_json_schema
from heliostat.errors import ConfigError, InvalidValueError, UnknownKeyError


def recipe(objective: dict[str, Any] | None = None, **changes: Any) -> DistillRecipe:
    tree = students_of(tiny_recipe().model_dump(), "big")
    return DistillRecipe.model_validate({**tree, "objective": {**tree["objective"], **(objective or {})}, **changes})


NO_PROTOTYPES = {"dino_weight": 0.0, "ibot_weight": 0.0}


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (NO_PROTOTYPES, {}, r"dino_weight, ibot_weight, features.weight, labels.weight of 0: nothing is learnt"),
        ({"features": {"weight": 1.0}}, {}, r"features.weight is set, but objective.teacher_width is not"),
        ({"labels": {"weight": 1.0}, "teacher_width": 8}, {}, r"labels.weight is set, but objective.labels.classes"),
        ({"labels": {"weight": 1.0, "classes": 3}}, {}, r"labels.weight is set, but objective.teacher_width is not"),
        (LABELS, {}, r"student small has no registers.*registers to 1 or more, or objective.labels.teacher to none"),
        ({}, {"teacher": {}}, r"teacher.run names a run, teacher.weights a backbone.*neither is set"),
        ({}, {"teacher": {"run": "a", "weights": "b"}}, r"both are set"),
        ({}, {"teacher": {"weights": "b", "step": 3}}, r"teacher.step is of a run"),
        ({}, {"teacher": {"weights": "dinov2_vits14"}}, r"a backbone without heads.*features.weight to 1, or train"),
    ],
)
def test_recipe__refuses(objective: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        recipe(objective, **changes)


def test_recipe__labels_alone_need_neither_registers_nor_a_width() -> None:
    assert recipe({"labels": {"weight": 1.0, "classes": 3, "teacher": "none"}}).objective.compares_tokens is False


def test_recipe__a_convolutional_network_has_no_distillation_token_and_teaches_nobody() -> None:
    of_conv = {"students": [{"name": "conv", "model": CONV}]}
    with pytest.raises(InvalidValueError, match=r"student conv is a convolutional network, which has no registers"):
        recipe(LABELS, **of_conv)
    assert recipe({"labels": {"weight": 1.0, "classes": 3, "teacher": "none"}}, **of_conv)
    with pytest.raises(
        InvalidValueError, match=r"backbone x is a convolutional network \(convnext_t\), which can learn"
    ):
        check_teacher_backbone(recipe(), ConvNextConfig.model_validate({"arch": "convnext_t"}), "backbone x")


TINY = {"arch": "convnext_t"}


def written(folder: Path, *models: Any, **changes: Any) -> str:
    tree = {
        "kind": "distill",
        "name": "small-ones",
        "dataset": {"name": "photos"},
        "teacher": {"run": "big"},
        "students": [{"name": f"s{index}", "model": model} for index, model in enumerate(models)],
        "training": {"steps": 10, "global_batch": 8, "slot_batch": 4},
        **changes,
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_students__of_both_families_come_through_the_lock(tmp_path: Path) -> None:
    own = {"arch": "convnext_custom", "depths": [1, 2, 3, 4], "dims": [8, 16, 24, 32], "patch_px": 32}
    resolved = load_recipe(written(tmp_path, {"arch": "vit_s"}, TINY, own), [], {})
    recipe = resolved.recipe
    assert isinstance(recipe, DistillRecipe)
    vit, tiny, custom = (student.model for student in recipe.students)
    assert (vit.embed_dim, vit.depth, vit.patch_px) == (384, 12, 14)
    assert (tiny.embed_dim, tiny.depth, tiny.patch_px) == (768, 18, 16)
    assert (custom.embed_dim, custom.depth, custom.patch_px) == (32, 10, 32)
    assert recipe.of_student(recipe.students[2]).model == custom
    assert recipe.patch_sizes == (14, 16, 32)
    assert unlock(lock(resolved)) == recipe


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({**TINY, "dephts": [1, 1, 1, 1]}, UnknownKeyError, r"students\[0\].model.dephts \(r.yaml:\d+\)\. .*is depths"),
        ({**TINY, "registers": 4}, UnknownKeyError, r"model.registers .*keys of students\[0\].model are arch, depths"),
        ({**TINY, "drop_path": 0.1}, UnknownKeyError, r"unknown key students\[0\].model.drop_path"),
        ({**TINY, "depths": [1, 1, 1]}, InvalidValueError, r"model.depths .*a list of 4 values, each a whole number"),
        ({**TINY, "dims": [8, 8, 0, 8]}, InvalidValueError, r"model.dims .*each a whole number greater than 0"),
        ({**TINY, "dims": "wide"}, InvalidValueError, r"model.dims .*a list of 4 values"),
        ({"arch": "convnext_custom"}, ConfigError, r"students\[0\].model.depths is not set: number of blocks"),
        ({"arch": "convnext_x"}, InvalidValueError, r"model.arch .*vit_s, .*custom or one of convnext_t, "),
        ({"arch": "resnet"}, InvalidValueError, r"model.arch .*vit_s, .*custom or one of convnext_t, "),
        ({"arch": 5}, InvalidValueError, r"model.arch .*one of vit_s"),
        ("convnext_t", InvalidValueError, r"students\[0\].model .*must be a section of keys"),
        (
            {"arch": "vit_s", "rope": {"bass": 3}},
            UnknownKeyError,
            r"students\[0\].model.rope.bass .*nearest key is base",
        ),
        ({"arch": "vit_s", "depth": 0}, InvalidValueError, r"model.depth .*must be a whole number greater than 0"),
        ({**TINY, "patch_px": 2}, InvalidValueError, r"model.patch_px .*whole number of at least 4"),
        ({**TINY, "patch_px": 10}, InvalidValueError, r"global_px 224 is not made of whole patches.*global_px to 220"),
    ],
)
def test_students__what_does_not_fit_is_named(
    model: Mapping[str, Any], error: type[ConfigError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load_recipe(written(tmp_path, model), [], {})


def test_students__local_crops_of_a_convolutional_one_have_any_size_that_its_stem_sees(tmp_path: Path) -> None:
    sides = {"augmentation": {"global_px": 224, "local_px": 98}}
    load_recipe(written(tmp_path, {"arch": "vit_s"}, TINY, **sides), [], {})
    with pytest.raises(InvalidValueError, match=r"local_px 98 is not made .*\(patch_px: s1 16\)"):
        load_recipe(written(tmp_path, TINY, {"arch": "vit_s", "patch_px": 16}, **sides), [], {})
    with pytest.raises(InvalidValueError, match="local_px 3 is less than the 4 pixels that the stem of convnext_t"):
        load_recipe(written(tmp_path, TINY), ["augmentation.local_px=3"], {})


@pytest.mark.parametrize("kind", ["pretrain", "adapt"])
def test_model__of_other_kinds_is_no_convolutional_network(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    tree = {"kind": kind, "name": "r", "dataset": {"name": "d"}, "model": TINY, "training": {"steps": 3}}
    path.write_text(yaml.safe_dump({**tree, **({"init_from": {"run": "big"}} if kind == "adapt" else {})}))
    with pytest.raises(
        InvalidValueError, match=r"convnext_t is a convolutional network.*vit_s, .*student of kind: distill"
    ):
        load_recipe(path, [], {})


def test_recipe_json_schema__has_both_families() -> None:
    parts = recipe_json_schema("distill")["$defs"]
    names = {each["$ref"].rpartition("/")[2] for each in parts["StudentConfig"]["properties"]["model"]["oneOf"]}
    assert names == {"StudentModelConfig", "ConvNextConfig"}
    assert parts["ConvNextConfig"]["required"] == ["arch"]
