"""Whole steps against a plain implementation of DINOv2's, and what a step does with numbers that are not finite."""

import doctest
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from support.closed_form import det_parameters
from support.plain_step import PlainRun, PlainSettings
from support.slots import masks_of
from torch import Tensor

import heliostat.objectives
from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import NonFiniteLossError
from heliostat.objectives import SlotBatch, StepValues, TrainingStep, single_process_step
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.masking import draw_drops
from heliostat.objectives.networks import Network

IMAGES, LOCAL, PATCHES, WIDTH = 4, 3, 16, 32
STEPS = 3
VALUES = [
    StepValues(lr=1e-3, weight_decay=0.3, ema_momentum=0.9, teacher_temperature=0.04, prototypes_frozen=True),
    StepValues(lr=2e-3, weight_decay=0.2, ema_momentum=0.8, teacher_temperature=0.05, prototypes_frozen=False),
    StepValues(lr=1e-3, weight_decay=0.1, ema_momentum=0.95, teacher_temperature=0.07, prototypes_frozen=False),
]


def recipe_of(
    slots: int = 1, model: Mapping[str, Any] | None = None, clip_norm: float = 3.0, **objective: Any
) -> PretrainRecipe:
    return PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "name": "step",
            "dataset": {"name": "none"},
            "model": {
                "arch": "custom",
                "embed_dim": WIDTH,
                "depth": 2,
                "heads": 2,
                "patch_px": 4,
                "drop_path": 0.4,
                **(model or {}),
            },
            "augmentation": {"global_px": 16, "local_px": 8, "local_count": LOCAL},
            "objective": {"prototypes": 48, "head_hidden": 24, "head_bottleneck": 16, **objective},
            "training": {
                "steps": 10,
                "global_batch": slots * IMAGES,
                "slot_batch": IMAGES,
                "layer_decay": 0.8,
                "precision": "fp32",
                "clip_norm": clip_norm,
                "nonfinite_steps": 2,
            },
        }
    )


def slot_of(seed: int, drops: bool = False, masked: bool = True) -> SlotBatch:
    """Random pixels; of the eight global crops four have masks, of different sizes, or none has."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.0, 0.2, 0.0, 0.8, 0.0, 0.0, 0.4]).roll(seed) * masked
    masks = torch.rand(2 * IMAGES, PATCHES, generator=generator) < shares[:, None]
    return SlotBatch(
        global_crops=torch.randn(2 * IMAGES, 3, 16, 16, generator=generator, dtype=torch.float64),
        local_crops=torch.randn(LOCAL * IMAGES, 3, 8, 8, generator=generator, dtype=torch.float64),
        masks=masks,
        drops=draw_drops(0, seed, 0, 2, (2 * IMAGES, LOCAL * IMAGES), 0.4) if drops else None,
        ids=tuple(f"sample-{seed}-{image}" for image in range(IMAGES)),
    )


def both_steps(recipe: PretrainRecipe, dtype: torch.dtype) -> tuple[TrainingStep, PlainRun]:
    """The product's step in some precision and the plain one in float64, from the same weights, no initial ones."""
    networks = [Network(recipe).to(dtype), Network(recipe).to(dtype)]
    shapes = {name: tuple(value.shape) for name, value in networks[0].state_dict().items()}
    weights = det_parameters(shapes), det_parameters(dict(reversed(shapes.items())))
    for network, values in zip(networks, weights, strict=True):
        network.load_state_dict(values)
    student, teacher = networks
    step = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher)
    if dtype == torch.float32:  # what a user of the library calls makes fp32 networks
        step = single_process_step(recipe, *weights)
    objective = recipe.objective
    settings = PlainSettings(
        recipe.model.heads,
        recipe.training.layer_decay,
        objective.centring,
        objective.koleo_group,
        objective.koleo_neighbours,
        recipe.training.clip_norm,
    )
    student_double, teacher_double = ({name: each.double() for name, each in values.items()} for values in weights)
    return step, PlainRun(settings, student_double, {name: teacher_double[name] for name in shapes})


def copied(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """Softmax ignores what is added to all scores of a query: the bias of the keys has a gradient of zero, and Adam
    turns the rounding that is there instead into steps of full size."""
    return torch.cat([tensor[:WIDTH], tensor[2 * WIDTH :]]) if name.endswith("qkv.bias") else tensor


def assert_moved_alike(mine: Mapping[str, Tensor], plain: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Parameters are compared by how far they moved: that of one step is a small part of them.

    The product computes KoLeo and the offsets of targets in fp32, and Adam makes much of rounding where there is next
    to no gradient, so a few elements may differ; a rule that is wrong shows in all elements of many tensors.
    """
    assert mine.keys() == plain.keys()
    shares = {}
    for name, expected in plain.items():
        a, b, start = (without_key_bias(name, each) for each in (mine[name], expected, before[name]))
        distance, moved = float((a - b).norm()), float((b - start).norm())
        shares[name] = distance / moved if moved else distance
    assert max(shares.values()) <= 1e-2, {name: share for name, share in shares.items() if share > 1e-2}
    for module in {name.split(".")[0] for name in shares}:
        assert median(share for name, share in shares.items() if name.startswith(module)) <= 1e-5, module


def assert_steps_are_the_plain_ones(recipe: PretrainRecipe, drops: bool = False) -> list[dict[str, float]]:
    """Gives the norms of the gradients of each step."""
    all_norms = []
    step, plain = both_steps(recipe, torch.float64)
    for index, values in enumerate(VALUES):
        slots = [slot_of(10 * index + slot, drops, masked=slot != 1) for slot in range(recipe.training.slots)]
        before = dict(plain.student), dict(plain.teacher)
        result = step.run(index, slots, values)
        terms, norms = plain.step(slots, values)
        assert {name: result.terms[name] for name in terms} == pytest.approx(terms, rel=1e-6)
        assert result.gradient_norms == pytest.approx(norms, rel=1e-5)
        all_norms.append(norms)
        assert_moved_alike(copied(step.student), plain.student, before[0])
        assert_moved_alike(copied(step.teacher), plain.teacher, before[1])
        centres = step.replicated_state().get("centre", {})
        assert centres.keys() == plain.centre_now().keys()
        for kind, centre in plain.centre_now().items():
            torch.testing.assert_close(centres[kind].double(), centre[0], atol=1e-6, rtol=1e-5)
    return all_norms


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("centring", ["sinkhorn_knopp", "softmax"])
@pytest.mark.parametrize("ibot_head", ["separate", "shared"])
def test_step__equals_the_plain_one(ibot_head: str, centring: str, slots: int) -> None:
    assert_steps_are_the_plain_ones(recipe_of(slots, ibot_head=ibot_head, centring=centring))


@pytest.mark.parametrize("centring", ["sinkhorn_knopp", "softmax"])
def test_single_process_step__in_full_precision_follows_the_plain_one(centring: str) -> None:
    recipe = recipe_of(2, centring=centring)
    step, plain = both_steps(recipe, torch.float32)
    for index, values in enumerate(VALUES):
        slots = [slot_of(10 * index + slot) for slot in range(2)]
        result = step.run(index, [in_single(slot) for slot in slots], values)
        terms, norms = plain.step(slots, values)
        assert {name: result.terms[name] for name in terms} == pytest.approx(terms, rel=1e-4)
        assert result.gradient_norms == pytest.approx(norms, rel=1e-3)


def test_step__clips_in_some_steps_as_the_plain_one() -> None:
    """Adam forgets a factor that all steps have: the limit shows where it changes some of them only."""
    norms = assert_steps_are_the_plain_ones(recipe_of(clip_norm=9.0))
    assert norms[0]["backbone"] < 9.0 < norms[2]["backbone"]


VARIANTS: dict[str, dict[str, Any]] = {
    "registers": {"model": {"registers": 2}},
    "swiglu": {"model": {"ffn": "swiglu"}},
    "linear prototypes": {"prototype_layer": "linear"},
    "koleo in groups": {"koleo_group": 2},
    "koleo of two neighbours": {"koleo_neighbours": 2},
    "heads of two sizes": {"ibot_prototypes": 40, "ibot_head_hidden": 20, "ibot_head_bottleneck": 12},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_step__of_a_variant_with_drops_equals_the_plain_one(variant: str) -> None:
    assert_steps_are_the_plain_ones(recipe_of(2, **VARIANTS[variant]), drops=True)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_step__recomputing_activations_changes_nothing(mode: str) -> None:
    def trained(activation_checkpointing: str) -> dict[str, Tensor]:
        recipe = recipe_of()
        training = recipe.training.model_copy(update={"activation_checkpointing": activation_checkpointing})
        step = single_process_step(recipe.model_copy(update={"training": training}))
        assert step.student.backbone.recompute == activation_checkpointing
        for index in range(2):
            step.run(index, [in_single(slot_of(index, drops=True))], VALUES[1])
        return copied(step.student)

    mine, selective = trained(mode), trained("selective")
    for name, expected in selective.items():
        torch.testing.assert_close(mine[name], expected, atol=1e-6, rtol=1e-5)


def test_single_process_step__the_example_of_the_module_runs() -> None:
    tried = doctest.testmod(heliostat.objectives)
    assert (tried.failed, tried.attempted > 10) == (0, True)


def test_single_process_step__takes_weights_of_ones_own() -> None:
    recipe = recipe_of()
    own = copied(single_process_step(recipe.model_copy(update={"seed": 5})).student)
    other = copied(single_process_step(recipe.model_copy(update={"seed": 6})).student)
    alone, both = single_process_step(recipe, own), single_process_step(recipe, own, other)
    for network, expected in ((alone.student, own), (alone.teacher, own), (both.student, own), (both.teacher, other)):
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


# Numbers that are not finite


def in_single(slot: SlotBatch) -> SlotBatch:
    return replace(slot, global_crops=slot.global_crops.float(), local_crops=slot.local_crops.float())


def broken(slot: SlotBatch, value: float, where: str = "global_crops") -> SlotBatch:
    """One pixel of the slot is not finite."""
    crops = getattr(slot, where).clone()
    crops[2, 0, 3, 3] = value
    return replace(slot, **{where: crops})


def everything(step: TrainingStep) -> dict[str, Tensor]:
    state = {f"student|{name}": value for name, value in copied(step.student).items()}
    for kind, tensors in step.replicated_state().items():
        state |= {f"{kind}|{name}": value.clone() for name, value in tensors.items()}
    return state


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pair(seed: int) -> list[SlotBatch]:
    return [in_single(slot_of(seed)), in_single(slot_of(seed + 100))]


@pytest.mark.parametrize("centring", ["sinkhorn_knopp", "softmax"])
@pytest.mark.parametrize("where", ["global_crops", "local_crops"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_run__a_step_that_is_not_finite_leaves_no_trace(value: float, where: str, centring: str) -> None:
    recipe = recipe_of(2, centring=centring)
    step, undisturbed = single_process_step(recipe), single_process_step(recipe)
    step.run(0, pair(0), VALUES[1])
    before = everything(step)
    bad = pair(1)
    bad[1] = broken(bad[1], value, where)
    result = step.run(1, bad, VALUES[1])
    assert result.skipped is not None
    assert result.skipped.sample_ids == bad[1].ids
    assert result.skipped.reason.startswith("step 1 is not finite (loss nan")
    assert same(everything(step), before)
    assert step.learner.skips_in_a_row == 1
    # Nor in Adam's moments, its count of steps or a gradient: the next step is that of a run without the bad one.
    after = step.run(2, pair(2), VALUES[2])
    assert after.skipped is None
    assert step.learner.skips_in_a_row == 0
    undisturbed.run(0, pair(0), VALUES[1])
    undisturbed.run(2, pair(2), VALUES[2])
    assert same(everything(step), everything(undisturbed))


def outcomes(step: TrainingStep, kinds: str) -> list[bool]:
    """Whether each step was skipped; ``x`` is a step whose first slot is broken."""
    found = []
    for index, kind in enumerate(kinds):
        slots = pair(index)
        if kind == "x":
            slots[0] = broken(slots[0], float("nan"))
        found.append(step.run(index, slots, VALUES[1]).skipped is not None)
    return found


def test_run__stops_after_more_bad_steps_in_a_row_than_allowed_and_names_the_samples() -> None:
    step = single_process_step(recipe_of(2))
    assert outcomes(step, "xx.xx.") == [True, True, False, True, True, False]
    before = everything(step)
    with pytest.raises(NonFiniteLossError) as raised:
        outcomes(step, "xxx")
    message = str(raised.value)
    assert message.startswith("HS-RUN-002: step 2 is not finite (loss nan")
    assert "and neither were the 2 steps before it, which were left out" in message
    assert "; samples of the slots: sample-2-0, sample-2-1, sample-2-2, sample-2-3" in message
    assert "sample-102" not in message
    assert same(everything(step), before)


def test_run__a_gradient_that_is_not_finite_names_no_sample() -> None:
    """Its loss is finite: the gradient overflows on its way back."""
    step = single_process_step(recipe_of(2))
    handle = step.student.backbone.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = everything(step)
    result = step.run(0, pair(0), VALUES[1])
    assert result.skipped is not None
    assert result.skipped.sample_ids == ()
    assert result.skipped.reason.startswith("step 0 is not finite (gradient norm of backbone ")
    assert all(torch.tensor(value).isfinite() for value in result.terms.values())
    assert same(everything(step), before)
    handle.remove()
    assert step.run(1, pair(1), VALUES[1]).skipped is None


# Gram anchoring

GRAM = {"weight": 3.0, "from_step": 2, "refresh_every_steps": 2, "max_refreshes": 1}


def with_gram(slot: SlotBatch, seed: int) -> SlotBatch:
    generator = torch.Generator().manual_seed(seed)
    return replace(in_single(slot), gram_crops=torch.randn(2 * IMAGES, 3, 32, 32, generator=generator))


def gram_weights(step: TrainingStep) -> dict[str, Tensor]:
    assert step.gram_teacher is not None
    return copied(step.gram_teacher)


def test_run__the_gram_teacher_is_the_ema_teacher_of_its_refreshes() -> None:
    step = single_process_step(recipe_of(gram=GRAM))
    teachers, grams, terms = [], [], []
    for index in range(7):
        teachers.append(copied(step.teacher.backbone))
        terms.append(step.run(index, [with_gram(slot_of(index), index)], VALUES[1]).terms["gram"])
        grams.append(gram_weights(step))
    assert terms[:2] == [0.0, 0.0]
    assert all(term > 1e-6 for term in terms[2:])
    for index, refreshed in ((2, 2), (3, 2), (4, 4), (5, 4), (6, 4)):
        assert same(grams[index], teachers[refreshed]), index
    assert not same(teachers[2], teachers[4])


def test_run__the_gram_loss_is_part_of_the_loss_from_its_step_on() -> None:
    plain = single_process_step(recipe_of())
    anchored = single_process_step(recipe_of(gram=GRAM))
    slot = with_gram(slot_of(0), 0)
    first = [step.run(0, [slot], VALUES[1]) for step in (plain, anchored)]
    assert first[0].terms == first[1].terms
    assert same(copied(plain.student), copied(anchored.student))
    whole = anchored.student.backbone([slot.global_crops], [masks_of(slot)])[0].patches_BND
    (large,) = anchored.teacher.backbone([slot.gram_crops])
    maps = large.patches_BND.mT.unflatten(2, (8, 8))
    anchor = torch.nn.functional.interpolate(maps, (4, 4), mode="bicubic").flatten(2).mT
    expected = mean_squared_difference_of_cosines(whole.detach(), anchor.detach())
    second = [step.run(2, [slot], VALUES[1]) for step in (plain, anchored)]
    terms = second[1].terms
    assert terms["gram"] == pytest.approx(expected, rel=1e-4)
    assert terms["loss"] == pytest.approx(second[0].terms["loss"] + 3.0 * terms["gram"], rel=1e-5)
    assert not same(copied(plain.student), copied(anchored.student))


def mean_squared_difference_of_cosines(one: Tensor, other: Tensor) -> float:
    total: list[float] = []
    for mine, theirs in zip(one.double(), other.double(), strict=True):
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (mine, theirs))
        total.append(float((a @ a.T - b @ b.T).square().mean()))
    return sum(total) / len(total)


def test_run__a_slot_without_gram_crops_is_named() -> None:
    with pytest.raises(ValueError, match="without Gram crops"):
        single_process_step(recipe_of(gram=GRAM)).run(2, [in_single(slot_of(0))], VALUES[1])


def test_single_process_step__goes_on_at_a_higher_resolution() -> None:
    low = single_process_step(recipe_of())
    high_recipe = recipe_of()
    augmentation = high_recipe.augmentation.model_copy(update={"global_px": 2 * high_recipe.augmentation.global_px})
    high_recipe = high_recipe.model_copy(update={"augmentation": augmentation})
    high = single_process_step(high_recipe, low.student.state_dict(), low.teacher.state_dict())
    table, small = high.teacher.backbone.pos_embed, low.teacher.backbone.pos_embed
    assert isinstance(table, Tensor) and isinstance(small, Tensor)
    patches = (2 * low.teacher.backbone.grid) ** 2
    assert table.shape[1] == 1 + patches
    assert torch.equal(table[:, 0], small[:, 0])
    slot = in_single(slot_of(0))
    bigger = torch.nn.functional.interpolate(slot.global_crops, scale_factor=2)
    masks = torch.zeros(len(bigger), patches, dtype=torch.bool)
    masks[0, :5] = True
    result = high.run(0, [replace(slot, global_crops=bigger, masks=masks)], VALUES[1])
    assert result.skipped is None


def test_run__refuses_slots_that_do_not_fit_together() -> None:
    step, slot = single_process_step(recipe_of()), in_single(slot_of(0))
    for wrong in (
        replace(slot, masks=masks_of(slot)[:1]),
        replace(slot, masks=masks_of(slot).to(torch.uint8)),
        replace(slot, local_crops=slot.local_crops[:0]),
        replace(slot, local_crops=slot.local_crops[:-1]),
        replace(slot, global_crops=slot.global_crops[:-1]),
    ):
        with pytest.raises(ValueError, match=r"a slot of \d+ images has|masks are bool of shape"):
            step.run(0, [wrong], VALUES[1])
    for slots in ([], [slot, slot]):
        with pytest.raises(ValueError, match=rf"has 1 of the step's 1 slots .* {len(slots)} were given"):
            step.run(0, slots, VALUES[1])
