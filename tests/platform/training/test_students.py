"""Distillation on DeepSpeed: any number of workers and any stage gives what one plain process gives."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distilling import FEATURES, FEATURES_ALONE, LABELS, students_of
from support.worlds import CPU_DEVICE, run_world, step_input, tiny_recipe, whole_state
from torch import Tensor

from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.verify import newest_good
from heliostat.config.distill import DistillRecipe, run_as_teacher
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import Engine, PlainEngine
from heliostat.objectives.networks import Network
from heliostat.storage import open_store
from heliostat.training.collective import first_does
from heliostat.training.feed import slot_batch
from heliostat.training.ledger import EMPTY
from heliostat.training.state import load_state, save_state
from heliostat.training.students import new_training
from heliostat.training.zero import ZeroEngine

State = dict[str, Tensor]
STEPS = 8


def distill_recipe(objective: Mapping[str, Any] | None = None, **training: Any) -> DistillRecipe:
    tree = students_of(tiny_recipe(**training).model_dump(), "big")
    tree["objective"] = {**tree["objective"], **(objective or {})}
    registers = int("labels" in tree["objective"])
    *transformers, convolutional = tree["students"]
    tree["students"] = [{**each, "model": {**each["model"], "registers": registers}} for each in transformers]
    if not registers:
        tree["students"].append(convolutional)
    return DistillRecipe.model_validate(tree)


def teacher_of(recipe: DistillRecipe) -> Network:
    """With weights of its own, and a position embedding of another grid than its crops here."""
    tree = {**tiny_recipe().model_dump(), "augmentation": {"global_px": 24, "local_px": 8}}
    teacher = Network(run_as_teacher(recipe, PretrainRecipe.model_validate(tree)))
    teacher.init_weights(recipe.seed + 1)
    return teacher


def distilled(
    recipe: DistillRecipe, new_engine: Callable[..., Engine], folder: str, until: int
) -> tuple[State, list[float]]:
    """The whole state after so many steps and the losses on the way, from the newest checkpoint on."""
    store = open_store(folder)
    log = CommitLog(store)
    lease = first_does(lambda: log.acquire_lease("test"))
    training = new_training(recipe, new_engine, (teacher_of(recipe),), CPU_DEVICE, lambda _: nullcontext())
    choice = first_does(lambda: newest_good(store, log.read()))
    first, losses = 0, []
    if choice is not None:
        load_state(store, choice.manifest, training)
        first = choice.manifest.step
    for step in range(first, until):
        prepared = step_input(recipe, training.plan, training.rank, step)
        losses.append(training.run(step, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots]).terms["loss"])
    save_state(store, log, lease, until, EMPTY, training)
    return whole_state(training, training.learners[0].engine), losses


def attempt(rank: int, world_size: int, recipe: DistillRecipe, folder: str, until: int) -> tuple[State, list[float]]:
    def new_engine(student: Network, of_student: PretrainRecipe) -> Engine:
        return ZeroEngine(student, of_student.training, SlotPlan(recipe.training.slots, world_size), CPU_DEVICE)

    return distilled(recipe, new_engine, folder, until)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, list[float]]:
    folder = str(tmp_path_factory.mktemp("plain"))
    return distilled(distill_recipe(), lambda student, of: PlainEngine(student, of.training), folder, STEPS)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        mine = found[name]
        if name.endswith("qkv.bias"):  # the key third has no gradient but rounding noise; see test_zero.py
            width = len(reference) // 3
            mine, reference = (torch.cat([each[:width], each[2 * width :]]) for each in (mine, reference))
        if name.startswith("exp_avg"):
            continue
        assert (mine - reference).norm() <= 1e-5 * reference.norm(), name


@pytest.mark.parametrize(("world_size", "stage"), [(1, 2), (2, 3), (3, 2), (4, 0)])
def test_distillation__at_any_worker_count_and_stage_is_the_plain_one(
    world_size: int, stage: int, plain: tuple[State, list[float]], tmp_path: Path
) -> None:
    recipe = distill_recipe(zero_stage=stage)
    for state, losses in run_world(world_size, attempt, recipe, str(tmp_path), STEPS):
        assert losses == pytest.approx(plain[1], rel=1e-5)
        assert_equal(state, plain[0])
    assert abs(plain[1][-1] - plain[1][0]) > 0.01 * plain[1][0]


@pytest.mark.parametrize(
    ("objective", "world_size", "stage"),
    [({**FEATURES, **LABELS}, 3, 2), ({**FEATURES, **LABELS}, 2, 3), (FEATURES_ALONE, 3, 3)],
    ids=["all on 3", "all cut in 2", "features cut in 3"],
)
def test_distillation__of_features_and_labels_is_the_plain_one_too(
    objective: Mapping[str, Any], world_size: int, stage: int, tmp_path: Path
) -> None:
    expected, losses = distilled(
        distill_recipe(objective), lambda student, of: PlainEngine(student, of.training), str(tmp_path / "plain"), STEPS
    )
    assert abs(losses[-1] - losses[0]) > 0.01 * losses[0]
    recipe = distill_recipe(objective, zero_stage=stage)
    for state, found in run_world(world_size, attempt, recipe, str(tmp_path / "world"), STEPS):
        assert found == pytest.approx(losses, rel=1e-5)
        assert_equal(state, expected)


def test_distillation__goes_on_at_another_worker_count(plain: tuple[State, list[float]], tmp_path: Path) -> None:
    before, _ = run_world(2, attempt, distill_recipe(zero_stage=2), str(tmp_path), 2)[0]
    again, none = run_world(3, attempt, distill_recipe(zero_stage=3), str(tmp_path), 2)[0]  # restores and saves
    assert none == []
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)
    state, _ = run_world(1, attempt, distill_recipe(), str(tmp_path), STEPS)[0]
    assert_equal(state, plain[0])
