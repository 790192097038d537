"""FLOPs from the recipe against those that torch counts in a real step."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.distilling import CONV, students_of
from support.slots import masks_of
from support.worlds import CPU_DEVICE, new_networks, step_input, tiny_recipe
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from heliostat.config.distill import DistillRecipe, run_as_teacher
from heliostat.config.network import NetworkRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives import cross_entropy
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.training.feed import slot_batch
from heliostat.training.planning.flops import LOGIT_CHUNK_BYTES, expected_masked, step_flops
from heliostat.training.planning.networks import Networks
from heliostat.training.planning.shapes import parameter_shapes
from heliostat.training.students import new_training

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "swiglu": {"model": {"ffn": "swiglu"}},
    "no drops": {"model": {"drop_path": 0.0}},
    "many drops": {"model": {"drop_path": 0.5, "depth": 4}},
    "registers": {"model": {"registers": 4, "untied_norms": "both"}},
    "rope": {"model": {"position": "rope", "embed_dim": 64}},
    "one local crop": {"augmentation": {"local_count": 1}},
    "shared head": {"objective": {"ibot_head": "shared"}},
    "own ibot head": {"objective": {"ibot_prototypes": 96, "ibot_head_hidden": 24, "ibot_head_bottleneck": 8}},
    "linear prototypes": {"objective": {"prototype_layer": "linear"}},
    "centring": {"objective": {"centring": "softmax"}},
    "gram": {"objective": {"gram": {"weight": 2.0}}},
    "full": {"training": {"activation_checkpointing": "full"}},
    "selective": {"training": {"activation_checkpointing": "selective"}},
}
TOLERANCE = 0.005
"""What a masked patch of a dropped crop saves in the last block is known in expectation only."""


def changed(**sections: dict[str, Any]) -> PretrainRecipe:
    tree = tiny_recipe().model_dump()
    for name, values in sections.items():
        tree[name] = {**tree[name], **values}
    tree["objective"]["gram"] = {**tiny_recipe().objective.gram.model_dump(), **tree["objective"]["gram"]}
    return PretrainRecipe.model_validate(tree)


def linear_flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    flops: int = 2 * math.prod(x) * weight[0]
    return flops


def convolution_backward_flops(gradient: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Torch's own count takes the gradient of a depthwise weight for that of a dense one."""
    of_input, of_weight, _bias = rest[-1]
    product: int = 2 * math.prod(gradient) * math.prod(weight[1:])
    return product * (int(of_input) + int(of_weight))


def counted_flops(recipe: PretrainRecipe) -> tuple[int, float]:
    """What torch counts in a step on one process, and the mean number of masked patches of a slot."""
    student, teacher = new_networks(recipe)
    training = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher)
    prepared = step_input(recipe, training.plan, 0, 0)
    slots = [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots]
    masked = sum(int(masks_of(slot).sum()) for slot in slots) / len(slots)
    return counted(lambda: training.run(0, slots)), masked


def counted(work: Callable[[], object]) -> int:
    known = {
        torch.ops.mkldnn._linear_pointwise: linear_flops,  # the product's own path on CPUs
        torch.ops.aten.convolution_backward: convolution_backward_flops,
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


OBJECTIVES: dict[str, dict[str, Any]] = {
    "prototypes": {},
    "features too": {"features": {"weight": 1.0}, "teacher_width": 64},
    "features alone": {
        "dino_weight": 0.0,
        "ibot_weight": 0.0,
        "features": {"weight": 1.0, "class_weight": 0.0},
        "teacher_width": 64,
    },
    "labels too": {"labels": {"weight": 1.0, "classes": 40}, "teacher_width": 64},
    "labels alone": {
        "dino_weight": 0.0,
        "ibot_weight": 0.0,
        "koleo_weight": 0.0,
        "labels": {"weight": 1.0, "classes": 40, "teacher": "none"},
    },
}


def distillation(objective: str, **training: Any) -> DistillRecipe:
    tree = students_of(tiny_recipe(**training).model_dump(), "big")
    tree["objective"] = {**tree["objective"], **OBJECTIVES[objective]}
    *transformers, convolutional = tree["students"]
    tree["students"] = [{**each, "model": {**each["model"], "registers": 2}} for each in transformers]
    if objective != "labels too":  # whose token is a register
        tree["students"].append(convolutional)
    return DistillRecipe.model_validate(tree)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_networks_flops__of_three_students_are_those_that_torch_counts(checkpointing: str, objective: str) -> None:
    recipe = distillation(objective, activation_checkpointing=checkpointing)
    teacher = changed(model={"embed_dim": 64, "registers": 2}, objective={"head_hidden": 40})
    network = Network(run_as_teacher(recipe, teacher))
    network.init_weights(0)
    training = new_training(recipe, new_plain_engine, (network,), CPU_DEVICE, lambda _: nullcontext())
    slots = [slot_batch(slot, CPU_DEVICE) for slot in step_input(recipe, training.plan, 0, 0).slots]
    planned = Networks.of(recipe, teacher)
    flops = planned.flops(recipe.training.slots)
    assert flops.executed == pytest.approx(counted(lambda: training.run(0, slots)), rel=TOLERANCE)
    by_network = planned.flops_by_network()
    assert list(by_network) == ["teacher", *(student.name for student in recipe.students)]
    assert sum(by_network.values()) == pytest.approx(flops.model / recipe.training.global_batch)


def new_plain_engine(student: Network, recipe: NetworkRecipe) -> PlainEngine:
    return PlainEngine(student, recipe.training)


@pytest.mark.parametrize("name", MODELS)
def test_step_flops__are_those_that_torch_counts(name: str) -> None:
    recipe = changed(**MODELS[name])
    counted, masked = counted_flops(recipe)
    planned = step_flops(recipe, recipe.training.slots, masked)
    assert planned.executed == pytest.approx(counted, rel=TOLERANCE)


def test_step_flops__masks_in_expectation_are_near_those_drawn() -> None:
    recipe = changed(training={"global_batch": 64, "slot_batch": 16}, augmentation={"global_px": 56, "local_px": 28})
    plan = SlotPlan(recipe.training.slots, 1)
    drawn = [int(masks_of(slot).sum()) for step in range(3) for slot in step_input(recipe, plan, 0, step).slots]
    assert sum(drawn) / len(drawn) == pytest.approx(expected_masked(recipe), rel=0.03)


def test_step_flops__logits_are_made_again_only_where_they_do_not_fit() -> None:
    few, many = tiny_recipe(), tiny_recipe({"prototypes": 2**21})
    assert step_flops(few, 4).repeated < step_flops(few, 4).teacher_heads
    once = step_flops(many, 4)
    assert once.repeated == pytest.approx(3 * once.teacher_heads, rel=0.01)


def test_step_flops__the_chunk_is_that_of_the_loss() -> None:
    assert LOGIT_CHUNK_BYTES == cross_entropy.CHUNK_BYTES


@pytest.mark.parametrize("values", [CONV, {"arch": "convnext_t"}, {"arch": "convnext_b", "depths": [1, 2, 3, 4]}])
def test_parameter_shapes__of_a_convolutional_student_are_those_of_the_network(values: dict[str, Any]) -> None:
    tree = students_of(tiny_recipe().model_dump(), "big")
    recipe = DistillRecipe.model_validate({**tree, "students": [{"name": "conv", "model": {**values, "patch_px": 16}}]})
    of_student = recipe.of_student(recipe.students[0])
    with torch.device("meta"):
        real = {name: tuple(each.shape) for name, each in Network(of_student).named_parameters()}
    assert list(parameter_shapes(of_student).items()) == list(real.items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameter_shapes__of_a_student_are_those_of_its_network(objective: str) -> None:
    recipe = distillation(objective)
    for each in recipe.students:
        of_student = recipe.of_student(each)
        real = {name: tuple(parameter.shape) for name, parameter in Network(of_student).named_parameters()}
        assert list(parameter_shapes(of_student).items()) == list(real.items())


@pytest.mark.parametrize("name", MODELS)
def test_parameter_shapes__are_those_of_the_network(name: str) -> None:
    recipe = changed(**MODELS[name])
    real = {name: tuple(parameter.shape) for name, parameter in Network(recipe).named_parameters()}
    assert list(parameter_shapes(recipe).items()) == list(real.items())
