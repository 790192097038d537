"""A backbone that never learns: its heads learn as they do on one that merely has not begun to, on any engine."""

from typing import Any

import pytest
import torch
from support.worlds import CPU_DEVICE, new_networks, run_world, step_input, tiny_recipe, whole_state

from heliostat.config.adapt import AdaptRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import Engine, PlainEngine
from heliostat.objectives.step import TrainingStep
from heliostat.training.feed import slot_batch
from heliostat.training.planning.flops import step_flops
from heliostat.training.planning.memory import activations_bytes
from heliostat.training.zero import ZeroEngine

STEPS = 4


def recipe_of(frozen: int, **training: Any) -> AdaptRecipe:
    tree = tiny_recipe().model_dump()
    tree["kind"], tree["init_from"] = "adapt", {"weights": "elsewhere"}
    tree["training"] |= {"steps": STEPS, "freeze_backbone_steps": frozen, "unfreeze_steps": 0, **training}
    return AdaptRecipe.model_validate(tree)


def trained(engine: Engine, recipe: AdaptRecipe) -> dict[str, torch.Tensor]:
    """The state after all steps but the last one."""
    _, teacher = new_networks(recipe)
    training = TrainingStep(recipe, engine, teacher)
    for step in range(STEPS - 1):
        prepared = step_input(recipe, training.plan, training.rank, step)
        training.run(step, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots])
    return whole_state(training, engine)


def in_world(rank: int, world_size: int, recipe: AdaptRecipe) -> dict[str, torch.Tensor]:
    student, _ = new_networks(recipe)
    engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), CPU_DEVICE)
    return trained(engine, recipe)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_heads__learn_as_on_a_backbone_that_learns_later(stage: int) -> None:
    later = recipe_of(STEPS - 1)
    student, _ = new_networks(later)
    expected = trained(PlainEngine(student, later.training), later)
    initial = dict(new_networks(later)[0].named_parameters())
    for found in run_world(2, in_world, recipe_of(STEPS, zero_stage=stage)):
        for name, value in expected.items():
            kind, _, parameter = name.partition("|")
            if not kind.startswith("exp_avg"):
                assert (found[name] - value).norm() <= 1e-5 * value.norm(), name
            if kind == "master":
                moved = not torch.equal(found[name].view(-1), initial[parameter].view(-1))
                assert moved != parameter.startswith("backbone."), name


def test_plan__a_backbone_that_never_learns_costs_a_third_and_keeps_nothing() -> None:
    never, later = recipe_of(STEPS), recipe_of(STEPS - 1)
    assert step_flops(never, 1).student_backbone == pytest.approx(step_flops(later, 1).student_backbone / 3, rel=0.05)
    deeper = never.model_copy(update={"model": never.model.model_copy(update={"depth": 12})})
    assert activations_bytes(deeper) == activations_bytes(never) < activations_bytes(later)
