"""Steps of distillation against a plain implementation, and students side by side against each one alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from support.closed_form import det_parameters
from support.plain_step import PlainRun, PlainSettings, Weights, backbone, entropy, head
from torch import Tensor

from heliostat.config.distill import DistillRecipe, StudentModelConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import NonFiniteLossError
from heliostat.objectives import SlotBatch
from heliostat.objectives.distillation import DistillationStep
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import TERMS, Network
from heliostat.objectives.schedules import StepValues, values_at

IMAGES, LOCAL, SIDE = 4, 3, 16
SMALL = {"arch": "custom", "embed_dim": 16, "depth": 2, "heads": 2, "patch_px": 4}
WIDE = {"arch": "custom", "embed_dim": 32, "depth": 3, "heads": 4, "patch_px": 4, "registers": 2}
COARSE = {**SMALL, "patch_px": 8}
TEACHER: dict[str, Any] = {
    "arch": "custom",
    "embed_dim": 48,
    "depth": 2,
    "heads": 4,
    "patch_px": 4,
    "ffn": "swiglu",
    "drop_path": 0.4,
}


def recipe_of(objective: Mapping[str, Any] | None = None, **students: Mapping[str, Any]) -> DistillRecipe:
    """Two slots of four images."""
    return DistillRecipe.model_validate(
        {
            "kind": "distill",
            "name": "distil",
            "dataset": {"name": "none"},
            "teacher": {"run": "big"},
            "students": [{"name": name, "model": model} for name, model in students.items()],
            "augmentation": {"global_px": SIDE, "local_px": 8, "local_count": LOCAL},
            "objective": {
                "prototypes": 48,
                "head_hidden": 24,
                "head_bottleneck": 16,
                "teacher_temperature_warmup_steps": 4,
                **(objective or {}),
            },
            "training": {
                "steps": 10,
                "global_batch": 2 * IMAGES,
                "slot_batch": IMAGES,
                "warmup_steps": 2,
                "freeze_prototypes_steps": 1,
                "layer_decay": 0.8,
                "precision": "fp32",
                "nonfinite_steps": 1,
            },
        }
    )


def slot_of(seed: int) -> SlotBatch:
    generator = torch.Generator().manual_seed(seed)
    return SlotBatch(
        global_crops=torch.randn(2 * IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64),
        local_crops=torch.randn(LOCAL * IMAGES, 3, 8, 8, generator=generator, dtype=torch.float64),
        masks=None,
        ids=tuple(f"sample-{seed}-{image}" for image in range(IMAGES)),
    )


def weights_of(recipe: PretrainRecipe, base: int) -> Weights:
    shapes = {name: tuple(value.shape) for name, value in Network(recipe).state_dict().items()}
    return {name: value.double() for name, value in det_parameters(shapes, base).items()}


def network_of(recipe: PretrainRecipe, weights: Mapping[str, Tensor]) -> Network:
    network = Network(recipe).double()
    network.load_state_dict(dict(weights))
    return network


def teacher_recipe(recipe: DistillRecipe) -> PretrainRecipe:
    of_student = recipe.of_student(recipe.students[0]).model_dump()
    objective = {**of_student["objective"], "head_hidden": 40, "head_bottleneck": 20}  # only the prototypes are alike
    return PretrainRecipe.model_validate({**of_student, "model": TEACHER, "objective": objective})


def step_of(recipe: DistillRecipe, initial: Mapping[str, Weights] | None = None) -> DistillationStep:
    recipes = {student.name: recipe.of_student(student) for student in recipe.students}
    weights = initial or {name: weights_of(each, 0) for name, each in recipes.items()}
    of_teacher = teacher_recipe(recipe)
    return DistillationStep(
        recipe,
        [
            (PlainEngine(network_of(each, weights[name]), each.training), network_of(each, weights[name]))
            for name, each in recipes.items()
        ],
        network_of(of_teacher, weights_of(of_teacher, 5)),
    )


class PlainDistillation(PlainRun):
    """A student of a frozen teacher, as ``PlainRun``, whose teacher is here the student's average."""

    def __init__(self, student: Weights, of_teacher: Weights, recipe: DistillRecipe, model: StudentModelConfig) -> None:
        settings = PlainSettings(model.heads, recipe.training.layer_decay, recipe.objective.centring)
        super().__init__(settings, dict(student), dict(student))
        self.frozen = of_teacher
        self.grid = SIDE // model.patch_px

    def _targets(self, slots: Sequence[SlotBatch], temperature: float) -> list[tuple[Tensor, Tensor]]:
        classes, patches = [], []
        for slot in slots:
            cls_BD, patches_BND = backbone(self.frozen, slot.global_crops, TEACHER["heads"])
            own = SIDE // TEACHER["patch_px"]
            if self.grid != own:
                maps = patches_BND.unflatten(1, (own, own)).permute(0, 3, 1, 2).float()
                maps = F.interpolate(maps, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
                patches_BND = maps.flatten(2).mT.double()
            classes.append(head(self.frozen, "dino_head", cls_BD))
            patches.append(head(self.frozen, "ibot_head", patches_BND.flatten(0, 1)))
        of_classes = self._distributions("dino", classes, temperature)
        of_patches = self._distributions("ibot", patches, temperature)
        return list(zip(of_classes, of_patches, strict=True))

    def _losses(self, weights: Weights, slot: SlotBatch, cls_p: Tensor, masked_p: Tensor) -> dict[str, Tensor]:
        heads = self.settings.heads
        _, patches_BND = backbone(weights, slot.global_crops, heads)
        nothing = torch.zeros(patches_BND.shape[:2], dtype=torch.bool)
        terms = super()._losses(weights, replace(slot, masks=nothing), cls_p, masked_p[:0])
        assert not terms["ibot"]
        logits = head(weights, "ibot_head", patches_BND.flatten(0, 1))
        terms["ibot"] = entropy(masked_p, logits).mean()
        return {**terms, "loss": terms["loss"] + terms["ibot"]}


@pytest.mark.parametrize("centring", ["sinkhorn_knopp", "softmax"])
def test_run__moves_each_student_as_the_plain_step(centring: Literal["sinkhorn_knopp", "softmax"]) -> None:
    recipe = recipe_of(objective={"centring": centring}, small=SMALL, wide=WIDE)
    step = step_of(recipe)
    frozen = weights_of(teacher_recipe(recipe), 5)
    plain = {
        student.name: PlainDistillation(weights_of(recipe.of_student(student), 0), frozen, recipe, student.model)
        for student in recipe.students
    }
    for index in range(3):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        result = step.run(index, slots)
        for learner, student in zip(step.learners, recipe.students, strict=True):
            values = scheduled(recipe, index)
            terms, norms = plain[student.name].step(slots, values)
            assert of_student(result.terms, student.name, terms) == pytest.approx(terms, rel=1e-6)
            assert of_student(result.gradient_norms, student.name, norms) == pytest.approx(
                norms, rel=1e-4
            )  # KoLeo and offsets are fp32
            assert_alike(learner.engine.student, plain[student.name].student)
            assert_alike(learner.average.network, plain[student.name].teacher)


def of_student(values: Mapping[str, float], student: str, names: Iterable[str]) -> dict[str, float]:
    return {name: values[f"{student}.{name}"] for name in names}


def scheduled(recipe: DistillRecipe, step: int) -> StepValues:
    return values_at(step, recipe.training, recipe.objective)


def assert_alike(network: Network, expected: Mapping[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        if name.endswith("qkv.bias"):  # the keys' third has no gradient but rounding, of which Adam makes full steps
            continue
        assert torch.allclose(value, expected[name], atol=2e-5, rtol=1e-4), name


def test_run__students_side_by_side_are_what_each_is_alone() -> None:
    models = {"small": SMALL, "wide": WIDE, "coarse": COARSE}
    together = step_of(recipe_of(**models))
    alone = {name: step_of(recipe_of(**{name: model})) for name, model in models.items()}
    for index in range(3):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        result = together.run(index, slots)
        for name, step in alone.items():
            terms = step.run(index, slots).terms
            assert of_student(result.terms, name, TERMS) == of_student(terms, name, TERMS)
    state = together.replicated_state()
    for step in alone.values():
        for kind, tensors in step.replicated_state().items():
            assert all(torch.equal(state[kind][name], tensor) for name, tensor in tensors.items())


def test_run__a_coarse_student_learns_from_the_resized_map_of_the_teacher() -> None:
    recipe = recipe_of(coarse=COARSE)
    step = step_of(recipe)
    (student,) = recipe.students
    plain = PlainDistillation(
        weights_of(recipe.of_student(student), 0), weights_of(teacher_recipe(recipe), 5), recipe, student.model
    )
    slots = [slot_of(slot) for slot in range(2)]
    result = step.run(0, slots)
    terms, _ = plain.step(slots, scheduled(recipe, 0))
    assert {name: result.terms[name] for name in terms} == pytest.approx(terms, rel=1e-5)


def test_run__a_student_that_breaks_leaves_the_step_out_alone() -> None:
    recipe = recipe_of(small=SMALL, wide=WIDE)
    step, healthy = step_of(recipe), step_of(recipe)
    with torch.no_grad():
        step.learners[0].engine.student.backbone.norm.weight.fill_(torch.inf)
    slots = [slot_of(0), slot_of(1)]
    result = step.run(0, slots)
    healthy.run(0, slots)
    assert result.skipped is None
    assert result.left_out is not None
    assert "student small" in result.left_out.reason
    assert "student wide" not in result.left_out.reason
    assert result.terms["loss"] == result.terms["wide.loss"]
    assert "small.loss" not in result.terms
    assert [learner.skips_in_a_row for learner in step.learners] == [1, 0]
    wide, expected = (each.learners[1].engine.student.state_dict() for each in (step, healthy))
    assert all(torch.equal(wide[name], expected[name]) for name in expected)
    with pytest.raises(NonFiniteLossError, match="student small"):
        step.run(1, slots)


def test_state__names_students_and_leaves_the_frozen_teacher_out() -> None:
    step = step_of(recipe_of(small=SMALL, wide=WIDE))
    before = {name: value.clone() for name, value in step.targets.teacher.network.state_dict().items()}
    step.run(0, [slot_of(0), slot_of(1)])
    assert all(torch.equal(before[name], value) for name, value in step.targets.teacher.network.state_dict().items())
    sizes = step.tensor_sizes()
    assert {name.split("|")[0] for name in sizes} == {"master", "exp_avg", "exp_avg_sq", "teacher"}
    assert {name.split("|")[1].split(".")[0] for name in sizes} == {"small", "wide"}
    whole = step.replicated_state()
    assert sizes == {f"{kind}|{name}": each.numel() for kind in whole for name, each in whole[kind].items()}
    assert step.counters()["small.optimizer_steps"] == step.counters()["wide.optimizer_steps"] == 1
