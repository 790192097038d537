"""Distillation from what the teacher has said before: the same result, and nobody asks the teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.distilling import (
    COARSE,
    FEATURES,
    FEATURES_ALONE,
    LABELS,
    SMALL,
    distill_recipe_at,
    pretrained_project,
)
from support.projects import heliostat
from support.whole_runs import newest_state
from support.worlds import samples_at, tiny_recipe

from heliostat.config import load_recipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import InvalidValueError
from heliostat.objectives.networks import Network
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store
from heliostat.training.feed import prepare_slot
from heliostat_jobs.train import train

FIXED = {"global_px": 16, "local_px": 8, "local_count": 2, "blur": "none", "fixed": True}
CACHED: dict[str, Any] = {"augmentation": FIXED, "teacher": {"run": "tiny", "cache": True}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run, ``tiny``."""
    return pretrained_project(tmp_path_factory.mktemp("project"))


def losses(root: Store, name: str) -> list[float]:
    return [line.values["loss"] or 0.0 for line in merged_curve(read_metrics(run_store(root, name)))]


def kept(root: Store) -> dict[str, bytes]:
    return {info.key: root.get(info.key) for info in root.list("teacher_views/")}


@pytest.fixture(scope="module")
def live(project: Path) -> Store:
    """The run ``live``, whose teacher looks at every crop in its turn."""
    heliostat("run", str(distill_recipe_at(project, "live", augmentation=FIXED)), "--single-process")
    return open_store(str(project / "root"))


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_cache__gives_the_losses_and_weights_of_a_teacher_that_looks_itself(
    project: Path, live: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At stage 3 the teacher is cut, and here it has no backbone, which nobody asks.
    path = distill_recipe_at(project, "cached", scaling={"workers": 2}, **CACHED)
    heliostat("run", str(path), "--set", "training.zero_stage=3")
    assert losses(live, "cached") == pytest.approx(losses(live, "live"), rel=1e-5)
    expected, found = (newest_state(run_store(live, name)) for name in ("live", "cached"))
    for key, value in expected.items():
        if key[0] == "teacher" and not key[1].endswith("qkv.bias"):  # see test_zero.py
            assert (found[key] - value).norm() <= 1e-5 * value.norm(), key
    before = kept(live)
    assert before

    def asked(self: Network, slot: object) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(Network, "view", asked)
    train(load_recipe(distill_recipe_at(project, "again", **CACHED), [], {}), single_process=True)
    assert losses(live, "again") == pytest.approx(losses(live, "live"), rel=1e-5)
    assert kept(live) == before


def test_cache__computes_what_is_missing_and_takes_nothing_that_is_damaged(project: Path, live: Store) -> None:
    train(load_recipe(distill_recipe_at(project, "whole", **CACHED), [], {}), single_process=True)
    before = kept(live)
    first, second, *_ = sorted(before)
    live.delete(first)
    live.put(second, before[second][:-1] + b"?")
    path = distill_recipe_at(project, "damaged", **CACHED)
    told = heliostat("run", str(path), "--single-process", expect=1)  # a process that has none of it in memory
    assert "does not have the hash in its name" in json.dumps(told)
    live.delete(second)
    train(load_recipe(path, [], {}), single_process=True)
    assert kept(live) == before
    assert losses(live, "damaged") == losses(live, "whole")


def test_cache__keeps_the_teachers_own_tokens_too(project: Path, live: Store) -> None:
    before = {key.split("/")[1] for key in kept(live)}
    for name, objective in (("tokens", {**FEATURES, **LABELS}), ("tokens-alone", {**FEATURES_ALONE, **LABELS})):
        students = [
            {"name": "small", "model": {**SMALL, "registers": 1}},
            {"name": "coarse", "model": {**COARSE, "registers": 2}},
        ]
        path = distill_recipe_at(project, f"{name}-live", augmentation=FIXED, students=students)
        tree = yaml.safe_load(path.read_text())
        tree["objective"] |= objective
        for run, teacher in ((f"{name}-live", {"run": "tiny"}), (name, {"run": "tiny", "cache": True})):
            path.write_text(yaml.safe_dump({**tree, "name": run, "teacher": teacher}))
            train(load_recipe(path, [], {}), single_process=True)
        assert losses(live, name) == pytest.approx(losses(live, f"{name}-live"), rel=1e-5)
    assert len({key.split("/")[1] for key in kept(live)} - before) == 2


def test_cache__of_another_seed_or_augmentation_is_another(project: Path, live: Store) -> None:
    before = {key.split("/")[1] for key in kept(live)}
    train(load_recipe(distill_recipe_at(project, "seeded", **CACHED), ["seed=5"], {}), single_process=True)
    other = distill_recipe_at(project, "flipped", **CACHED)
    train(load_recipe(other, ["augmentation.flip=0"], {}), single_process=True)
    assert len({key.split("/")[1] for key in kept(live)} - before) == 2


def test_cache__is_refused_where_crops_change(project: Path) -> None:
    changing = {**CACHED, "augmentation": {**FIXED, "fixed": False}}
    with pytest.raises(InvalidValueError, match=r"teacher.cache is on, but crops are drawn anew.*augmentation.fixed"):
        load_recipe(distill_recipe_at(project, "changing", **changing), [], {})


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed__crops_an_image_alike_wherever_it_stands(fixed: bool) -> None:
    tree = tiny_recipe().model_dump()
    recipe = PretrainRecipe.model_validate({**tree, "augmentation": {**tree["augmentation"], "fixed": fixed}})
    samples = samples_at(list(range(4)))
    later = samples_at(list(range(4)))
    later.positions[:] = [position + 100 for position in later.positions]
    mine, theirs = (prepare_slot(recipe, 0, 0, each).crops for each in (samples, later))
    for one, other in ((mine.global_crops, theirs.global_crops), (mine.local_crops, theirs.local_crops)):
        assert torch.equal(torch.from_numpy(one), torch.from_numpy(other)) == fixed
    # Each image has draws of its own.
    assert len({recipe.augmentation.global_px, *(crop.tobytes() for crop in mine.global_crops)}) == 1 + 2 * 4
