"""Steps of distillation against a plain implementation, and students side by side against each one alone."""

from typing import Literal

import pytest
import torch
from support.distilling import CONV
from support.plain_distillation import (
    COARSE,
    SMALL,
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

from heliostat.errors import NonFiniteLossError
from heliostat.objectives.networks import terms_of
from heliostat.objectives.step import copied_backbone


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


def test_run__students_side_by_side_are_what_each_is_alone() -> None:
    models = {"small": SMALL, "wide": WIDE, "coarse": COARSE}
    together = step_of(recipe_of(**models))
    alone = {name: step_of(recipe_of(**{name: model})) for name, model in models.items()}
    for index in range(3):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        result = together.run(index, slots)
        for name, step in alone.items():
            terms, names = step.run(index, slots).terms, step.learners[0].engine.student.terms
            assert of_student(result.terms, name, names) == of_student(terms, name, names)
    state = together.replicated_state()
    for step in alone.values():
        for kind, tensors in step.replicated_state().items():
            assert all(torch.equal(state[kind][name], tensor) for name, tensor in tensors.items())


def test_run__a_convolutional_student_learns_beside_others_as_alone() -> None:
    models = {"small": SMALL, "conv": CONV, "coarse": COARSE}
    together, alone = step_of(recipe_of(**models)), step_of(recipe_of(conv=CONV))
    expected_terms = terms_of(recipe_of(conv=CONV).objective)
    first = copied_backbone(alone.learners[0].average.network.backbone)
    for index in range(3):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        terms, expected = together.run(index, slots).terms, alone.run(index, slots).terms
        assert of_student(terms, "conv", expected_terms) == of_student(expected, "conv", expected_terms)
    network = alone.learners[0].average.network
    moved = copied_backbone(network.backbone).state_dict()
    assert all(torch.equal(moved[name], value.float()) for name, value in network.backbone.state_dict().items())
    assert [name for name, value in first.state_dict().items() if torch.equal(moved[name], value)] == []


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
