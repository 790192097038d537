"""A distillation as it is described, without any of the product's computations, and small ones to compare with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from support.closed_form import det_parameters
from support.plain_step import PlainRun, PlainSettings, Weights, backbone, entropy, head
from torch import Tensor

from heliostat.config.distill import DistillRecipe, StudentModelConfig, run_as_teacher
from heliostat.config.network import BackboneConfig, NetworkRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.objectives import SlotBatch
from heliostat.objectives.distillation import DistillationStep
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import Network
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
    """A slot of random crops."""
    generator = torch.Generator().manual_seed(seed)
    return SlotBatch(
        global_crops=torch.randn(2 * IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64),
        local_crops=torch.randn(LOCAL * IMAGES, 3, 8, 8, generator=generator, dtype=torch.float64),
        masks=None,
        ids=tuple(f"sample-{seed}-{image}" for image in range(IMAGES)),
    )


def weights_of(recipe: NetworkRecipe, base: int) -> Weights:
    """Closed-form weights of a network."""
    shapes = {name: tuple(value.shape) for name, value in Network(recipe).state_dict().items()}
    return {name: value.double() for name, value in det_parameters(shapes, base).items()}


def network_of(recipe: NetworkRecipe, weights: Mapping[str, Tensor]) -> Network:
    """A network with given weights, in double precision."""
    network = Network(recipe).double()
    network.load_state_dict(dict(weights))
    return network


def teacher_recipe(recipe: DistillRecipe) -> PretrainRecipe:
    """Of the run that trained the teacher."""
    of_student = recipe.of_student(recipe.students[0]).model_dump()
    # Only the prototypes are alike.
    own = {"head_hidden": 40, "head_bottleneck": 20, "dino_weight": 1.0, "ibot_weight": 1.0}
    objective = {**of_student["objective"], **own}
    return PretrainRecipe.model_validate({**of_student, "model": TEACHER, "objective": objective})


def step_of(recipe: DistillRecipe, initial: Mapping[str, Weights] | None = None) -> DistillationStep:
    """The product's step, with closed-form weights."""
    recipes = {student.name: recipe.of_student(student) for student in recipe.students}
    weights = initial or {name: weights_of(each, 0) for name, each in recipes.items()}
    of_teacher = run_as_teacher(recipe, teacher_recipe(recipe))
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

    def __init__(self, student: Weights, of_teacher: Weights, recipe: DistillRecipe, model: BackboneConfig) -> None:
        assert isinstance(model, StudentModelConfig)
        settings = PlainSettings(model.heads, recipe.training.layer_decay, recipe.objective.centring)
        super().__init__(settings, dict(student), dict(student))
        self.frozen = of_teacher
        self.grid = SIDE // model.patch_px

    def of_teacher(self, slot: SlotBatch) -> tuple[Tensor, Tensor]:
        """The teacher's class tokens, and its patches on the student's grid."""
        cls_BD, patches_BND = backbone(self.frozen, slot.global_crops, TEACHER["heads"])
        own = SIDE // TEACHER["patch_px"]
        if self.grid != own:
            maps = patches_BND.unflatten(1, (own, own)).permute(0, 3, 1, 2).float()
            maps = F.interpolate(maps, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
            patches_BND = maps.flatten(2).mT.double()
        return cls_BD, patches_BND

    def _targets(self, slots: Sequence[SlotBatch], temperature: float) -> list[tuple[Tensor, Tensor]]:
        classes, patches = [], []
        for slot in slots:
            cls_BD, patches_BND = self.of_teacher(slot)
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


def of_student(values: Mapping[str, float], student: str, names: Iterable[str]) -> dict[str, float]:
    """Numbers of a student, by their names without it."""
    return {name: values[f"{student}.{name}"] for name in names}


def scheduled(recipe: DistillRecipe, step: int) -> StepValues:
    """The values of a step."""
    return values_at(step, recipe.training, recipe.objective)


def assert_alike(network: Network, expected: Mapping[str, Tensor]) -> None:
    """Hold a network against plain weights."""
    for name, value in network.state_dict().items():
        if name.endswith("qkv.bias"):  # the keys' third has no gradient but rounding, of which Adam makes full steps
            continue
        assert torch.allclose(value, expected[name], atol=2e-5, rtol=1e-4), name
