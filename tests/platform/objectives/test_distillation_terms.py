"""What students learn besides prototypes, or instead of them: the teacher's tokens, and labels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.plain_distillation import (
    COARSE,
    IMAGES,
    SMALL,
    TEACHER,
    WIDE,
    PlainDistillation,
    assert_alike,
    of_student,
    recipe_of,
    scheduled,
    slot_of,
    step_of,
    teacher_recipe,
    weights_of,
)
from support.plain_step import KOLEO_WEIGHT, Weights, backbone
from torch import Tensor

from heliostat.config.distill import DistillRecipe
from heliostat.objectives import SlotBatch
from heliostat.objectives.networks import Network

WIDTH = TEACHER["embed_dim"]
FEATURES: dict[str, Any] = {"features": {"weight": 0.7, "class_weight": 0.5, "beta": 0.4}, "teacher_width": WIDTH}
ALONE: dict[str, Any] = {**FEATURES, "dino_weight": 0.0, "ibot_weight": 0.0}
LABELS: dict[str, Any] = {
    "labels": {"weight": 0.6, "classes": 5, "teacher": "soft", "token_weight": 0.8, "temperature": 2.0},
    "teacher_width": WIDTH,
}


class PlainFeatures(PlainDistillation):
    """With the losses of features, and without heads where there are none."""

    def _losses(self, weights: Weights, slot: SlotBatch, cls_p: Tensor, masked_p: Tensor) -> dict[str, Tensor]:
        cls_BD, patches_BND = backbone(weights, slot.global_crops, self.settings.heads)
        if "dino_head.mlp.0.weight" in weights:
            terms = super()._losses(weights, slot, cls_p, masked_p)
        else:
            koleo = sum((self._koleo(crop) for crop in cls_BD.chunk(2)), start=torch.zeros(()))
            terms = {"koleo": koleo, "loss": KOLEO_WEIGHT * koleo}
        taught_cls, taught = self.of_teacher(slot)
        terms["features"] = self._distance(weights, "patches", patches_BND.flatten(0, 1), taught.flatten(0, 1))
        terms["features_cls"] = self._distance(weights, "cls", cls_BD, taught_cls)
        return {**terms, "loss": terms["loss"] + 0.7 * terms["features"] + 0.35 * terms["features_cls"]}

    def _targets(self, slots: Any, temperature: float) -> list[tuple[Tensor, Tensor]]:
        if "dino_head.mlp.0.weight" in self.student:
            return super()._targets(slots, temperature)
        return [(torch.zeros(0), torch.zeros(0))] * len(slots)

    @staticmethod
    def _distance(weights: Weights, name: str, mine: Tensor, theirs: Tensor) -> Tensor:
        projected = mine @ weights[f"feature_head.{name}.weight"].T + weights[f"feature_head.{name}.bias"]
        centred = theirs - theirs.mean(-1, keepdim=True)
        white = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        distance = (projected - white).abs()
        return torch.where(distance <= 0.4, distance.square() / 0.8, distance - 0.2).mean()


@pytest.mark.parametrize("objective", [FEATURES, ALONE], ids=["besides prototypes", "alone"])
def test_features__move_each_student_as_the_plain_step(objective: Mapping[str, Any]) -> None:
    recipe = recipe_of(objective=objective, small=SMALL, coarse=COARSE)
    step = step_of(recipe)
    frozen = weights_of(teacher_recipe(recipe), 5)
    plain = {
        student.name: PlainFeatures(weights_of(recipe.of_student(student), 0), frozen, recipe, student.model)
        for student in recipe.students
    }
    for index in range(3):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        result = step.run(index, slots)
        for learner, student in zip(step.learners, recipe.students, strict=True):
            terms, norms = plain[student.name].step(slots, scheduled(recipe, index))
            # Targets of the coarse student go through fp32, and so does the distance.
            assert of_student(result.terms, student.name, terms) == pytest.approx(terms, rel=1e-5)
            assert of_student(result.gradient_norms, student.name, norms) == pytest.approx(norms, rel=1e-3)
            assert_alike(learner.engine.student, plain[student.name].student)


def test_features__alone_need_no_head_anywhere() -> None:
    step = step_of(recipe_of(objective=ALONE, small=SMALL))
    networks = [step.targets.teacher.network, step.learners[0].engine.student, step.learners[0].average.network]
    assert [network.sub_modules for network in networks] == [("backbone",), *[("backbone", "feature_head")] * 2]
    assert step.learners[0].engine.student.terms == ("loss", "koleo", "gram", "features", "features_cls")


def labelled(slot: SlotBatch, *labels: int) -> SlotBatch:
    return replace(slot, labels=torch.tensor(labels))


def expected_labels(recipe: DistillRecipe, student: Network, teacher: Network, slot: SlotBatch) -> dict[str, Tensor]:
    """The terms of labels, crop by crop."""
    assert slot.labels is not None
    config = recipe.objective.labels
    (mine,), (theirs,) = student.backbone([slot.global_crops]), teacher.backbone([slot.global_crops])
    head = student.label_head
    assert head.token is not None
    assert head.teacher is not None
    cls, token = head.cls(mine.cls_BD), head.token(mine.registers_BRD[:, 0])
    taught = head.teacher(F.layer_norm(theirs.cls_BD, (WIDTH,)))
    own, of_probe, of_token = [], [], []
    for crop in range(2 * IMAGES):
        label = int(slot.labels[crop % IMAGES])
        if label >= 0:
            p = torch.full((5,), config.smoothing / 5).double()
            p[label] += 1 - config.smoothing
            own.append(-(p * cls[crop].log_softmax(-1)).sum())
            of_probe.append(-taught[crop].log_softmax(-1)[label])
        if config.teacher == "hard":
            p = torch.full((5,), config.smoothing / 5).double()
            p[taught[crop].argmax()] += 1 - config.smoothing
            of_token.append(-(p * token[crop].log_softmax(-1)).sum())
        else:
            p = (taught[crop] / 2).softmax(-1).detach()
            of_token.append(4 * (p * (p.log() - (token[crop] / 2).log_softmax(-1))).sum())
    terms = {"label": own, "label_teacher": of_probe, "label_token": of_token}
    return {name: torch.stack(each).mean() for name, each in terms.items()}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_labels__are_learnt_by_class_token_and_teacher_and_the_teacher_by_the_distillation_token(kind: str) -> None:
    objective = {**LABELS, "labels": {**LABELS["labels"], "teacher": kind}}
    recipe = recipe_of(objective=objective, wide=WIDE)
    without = step_of(recipe_of(wide=WIDE))
    step = step_of(recipe)
    slots = [labelled(slot_of(0), 1, -1, 4, 0), labelled(slot_of(1), 2, 2, -1, 3)]
    student, teacher = step.learners[0].engine.student, step.targets.teacher.network
    found = [expected_labels(recipe, student, teacher, slot) for slot in slots]
    expected = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
    loss = 0.6 * (expected["label"] + expected["label_teacher"]) + 0.8 * expected["label_token"]
    gradients = torch.autograd.grad(loss, list(student.label_head.parameters()))
    plain = without.run(0, slots).terms
    terms, norms = (result := step.run(0, slots)).terms, result.gradient_norms
    assert {name: terms[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )
    assert terms["loss"] == pytest.approx(plain["loss"] + loss.item(), rel=1e-6)
    assert norms["wide.label_head"] == pytest.approx(
        torch.cat([each.flatten() for each in gradients]).norm().item(), rel=1e-5
    )


def test_labels__alone_are_plain_supervision_and_ask_the_teacher_nothing() -> None:
    objective = {"labels": {"weight": 1.0, "classes": 5, "teacher": "none"}}
    step = step_of(recipe_of(objective=objective, small=SMALL))
    assert "label_token" not in step.learners[0].engine.student.terms
    assert step.targets.teacher.network.shown.cls_tokens is False
    terms = step.run(0, [labelled(slot_of(0), 1, 1, 2, 3), labelled(slot_of(1), -1, -1, -1, -1)]).terms
    assert terms["label"] > 0


def test_labels__that_did_not_come_are_no_silent_zero() -> None:
    step = step_of(recipe_of(objective=LABELS, wide=WIDE))
    with pytest.raises(ValueError, match="made without labels"):
        step.run(0, [slot_of(0), slot_of(1)])
