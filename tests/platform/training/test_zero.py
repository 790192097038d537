"""The engine under DeepSpeed against the plain one, and against itself at other worker counts (DESIGN, section 2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from support.worlds import (
    CPU_DEVICE,
    Trace,
    new_networks,
    note_state,
    run_world,
    step_input,
    tiny_recipe,
    train,
    whole_state,
)
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import NonFiniteLossError
from heliostat.objectives import networks
from heliostat.objectives.engine import Engine, PlainEngine
from heliostat.objectives.koleo import koleo_loss
from heliostat.objectives.loss_scale import LossScale
from heliostat.objectives.sinkhorn import OneWorker
from heliostat.objectives.step import TrainingStep
from heliostat.training.feed import slot_batch
from heliostat.training.zero import ZeroEngine

STEPS = 6
TOLERANCE = 1e-5
"""Relative L2 per tensor."""
WIDTH = 32


def relative_differences(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Per tensor: ‖a - b‖ / ‖b‖.

    The key third of each qkv bias is left out: softmax ignores a constant added to all scores of a query, so its true
    gradient is zero, and Adam turns the rounding noise that remains into steps of full size.
    """

    def compared(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:WIDTH], tensor[2 * WIDTH :]]) if name.endswith("qkv.bias") else tensor

    differences = {}
    for name, reference in theirs.items():
        a, b = compared(name, mine[name]), compared(name, reference)
        # The mask token starts at zero and biases may stay there: nothing to divide by.
        differences[name] = ((a - b).norm() / b.norm()).item() if b.norm() > 0 else (a - b).norm().item()
    return differences


def assert_same_training(mine: Trace, reference: Trace) -> None:
    for kind in ("student", "teacher"):
        worst = relative_differences(getattr(mine, kind), getattr(reference, kind))
        wrong = {name: value for name, value in worst.items() if not value <= TOLERANCE}
        assert not wrong, f"{kind}: {wrong}"
    for step, (terms, expected) in enumerate(zip(mine.terms, reference.terms, strict=True)):
        assert terms == pytest.approx(expected, rel=TOLERANCE), step


def loss_moves(trace: Trace) -> float:
    losses = [terms["loss"] for terms in trace.terms]
    return abs(losses[-1] - losses[0]) / losses[0]


def train_under_zero(rank: int, world_size: int, recipe: PretrainRecipe, plant: str) -> Trace:
    """One worker's training, as the product does it or with a planted mistake."""
    student, teacher = new_networks(recipe)
    engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), torch.device("cpu"))
    if plant == "koleo":
        _plant_per_worker_koleo(recipe, world_size)
    if plant in ("sinkhorn", "centre"):
        _SeeOnlyThisWorker.plant(engine)
    trace = train(recipe, engine, range(STEPS), teacher, Trace())
    engine.close()
    return trace


_FEW = 16


class _SeeOnlyThisWorker(OneWorker):
    """Sinkhorn-Knopp or centring per worker; sums of loss terms and norms, which are few numbers, stay global."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._whole.sum(values) if values.numel() <= _FEW else values

    @classmethod
    def plant(cls, engine: ZeroEngine) -> None:
        engine.reducer = cls(engine.reducer)


def _plant_per_worker_koleo(recipe: PretrainRecipe, world_size: int) -> None:
    """KoLeo over a batch that depends on the number of workers: a part of the slot instead of the slot."""
    whole = koleo_loss

    def per_worker(cls_BD: torch.Tensor, group: int | None, neighbours: int) -> torch.Tensor:
        return whole(cls_BD[: max(2, len(cls_BD) // world_size)], group, neighbours)

    setattr(networks, "koleo_loss", per_worker)  # noqa: B010 -- the name that the product looks up


def plain_reference(recipe: PretrainRecipe, nudge: float = 0.0) -> Trace:
    student, teacher = new_networks(recipe)
    for network in (student, teacher):
        for parameter in network.parameters():
            parameter.data.mul_(1 + nudge * torch.sign(parameter.data.roll(1)))
    return train(recipe, PlainEngine(student, recipe.training), range(STEPS), teacher, Trace())


@pytest.fixture(scope="module")
def reference() -> Trace:
    return plain_reference(tiny_recipe())


def test_reference__the_loss_moves_enough_for_the_comparisons_to_mean_something(reference: Trace) -> None:
    assert loss_moves(reference) > 0.01


@pytest.mark.parametrize(
    ("stage", "world_size"), [(0, 3), (1, 2), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4)]
)
def test_zero_engine__any_stage_and_worker_count_train_like_one_plain_process(
    reference: Trace, stage: int, world_size: int
) -> None:
    traces = run_world(world_size, train_under_zero, tiny_recipe(zero_stage=stage), "")
    for trace in traces:
        assert_same_training(trace, reference)
    seen = [item for trace in traces for item in trace.slots.items()]
    assert len(seen) == len(reference.slots), "a slot was computed by none or by two workers"
    assert dict(seen) == reference.slots  # ids, pixels, masks and drops of every slot, to the last bit
    for trace in traces:
        for norms, expected in zip(trace.norms, reference.norms, strict=True):
            assert norms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "training",
    [
        {"zero_stage": 3, "activation_checkpointing": "full"},
        {"zero_stage": 1, "activation_checkpointing": "selective", "offload_optimizer": True},
        {"zero_stage": 3, "offload_optimizer": True},
    ],
    ids=lambda training: "-".join(map(str, training.values())),
)
def test_zero_engine__what_saves_memory_changes_no_number(reference: Trace, training: dict[str, Any]) -> None:
    for trace in run_world(2, train_under_zero, tiny_recipe(**training), ""):
        assert_same_training(trace, reference)


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 3), ("fp16", 2)])
def test_zero_engine__reduced_precision_differs_by_no_more_than_its_own_noise(precision: str, stage: int) -> None:
    """The noise: what becomes of a change of the initial weights by their last bit, which fp32's summation order is."""
    recipe = tiny_recipe(precision=precision, zero_stage=stage)
    plain, nudged = plain_reference(recipe), plain_reference(recipe, nudge=2.0**-24)
    floor = max(
        max(relative_differences(getattr(nudged, kind), getattr(plain, kind)).values())
        for kind in ("student", "teacher")
    )
    assert 1e-5 < floor < 1e-2  # of fp32 the first would be wrong, of a wrong computation the second
    for trace in run_world(3, train_under_zero, recipe, ""):
        for kind in ("student", "teacher"):
            worst = relative_differences(getattr(trace, kind), getattr(plain, kind))
            assert max(worst.values()) <= 3 * floor, worst


def test_loss_scale__a_step_whose_gradient_overflows_is_computed_again_and_not_lost() -> None:
    recipe = tiny_recipe(precision="fp16")

    def first_step(scale: float) -> tuple[TrainingStep, dict[str, Tensor]]:
        student, teacher = new_networks(recipe)
        engine = PlainEngine(student, recipe.training)
        training = TrainingStep(recipe, engine, teacher)
        training.learner.loss_scale = LossScale(scale)
        slots = [slot_batch(slot, CPU_DEVICE) for slot in step_input(recipe, training.plan, 0, 0).slots]
        assert training.run(0, slots).skipped is None
        assert engine.optimizer_steps == 1
        return training, whole_state(training, engine)

    student, teacher = new_networks(recipe)
    broken = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher)
    student.backbone.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    slots = [slot_batch(slot, CPU_DEVICE) for slot in step_input(recipe, broken.plan, 0, 0).slots]
    before = broken.learner.loss_scale
    assert broken.run(0, slots).skipped is not None
    assert broken.learner.loss_scale == before  # it was not to blame

    lowered, state = first_step(2.0**40)
    assert 1 < lowered.learner.loss_scale.factor < 2.0**40
    _, expected = first_step(lowered.learner.loss_scale.factor)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_zero_engine__in_bf16_sums_gradients_over_workers_in_full_precision() -> None:
    recipe = tiny_recipe(precision="bf16")
    alone, *_ = run_world(1, train_under_zero, recipe, "")
    for trace in run_world(2, train_under_zero, recipe, ""):
        for mine, expected in zip(trace.terms, alone.terms, strict=True):
            assert mine == pytest.approx(expected, rel=1e-3)
        for norms, expected in zip(trace.norms, alone.norms, strict=True):
            assert norms == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("plant", ["koleo", "sinkhorn"])
def test_zero_engine__a_planted_per_worker_loss_is_found(reference: Trace, plant: str) -> None:
    trace = run_world(2, train_under_zero, tiny_recipe(), plant)[0]
    with pytest.raises(AssertionError):
        assert_same_training(trace, reference)


CENTRED = {
    "centring": "softmax",
    "ibot_head": "shared",
    "koleo_group": 2,
    "gram": {"weight": 2.0, "from_step": 2, "refresh_every_steps": 3, "max_refreshes": 1},
}


@pytest.fixture(scope="module")
def centred() -> PretrainRecipe:
    """The other way to keep targets spread, one head for both losses, KoLeo in groups, a Gram teacher."""
    return tiny_recipe(CENTRED)


@pytest.fixture(scope="module")
def centred_reference(centred: PretrainRecipe) -> Trace:
    return plain_reference(centred)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_engine__softmax_centring_and_a_shared_head_do_not_depend_on_workers(
    centred: PretrainRecipe, centred_reference: Trace, stage: int
) -> None:
    assert {name.split("|")[0] for name in centred_reference.teacher} == {"teacher", "gram_teacher", "centre"}
    assert centred_reference.teacher["centre|ibot"].any()
    assert centred_reference.terms[-1]["gram"] > 0
    staged = centred.model_copy(update={"training": centred.training.model_copy(update={"zero_stage": stage})})
    for trace in run_world(3, train_under_zero, staged, ""):
        assert_same_training(trace, centred_reference)


def test_zero_engine__a_planted_per_worker_centre_is_found(centred: PretrainRecipe, centred_reference: Trace) -> None:
    trace = run_world(2, train_under_zero, centred, "centre")[0]
    with pytest.raises(AssertionError):
        assert_same_training(trace, centred_reference)


def test_zero_engine__clips_each_sub_module_by_its_own_norm() -> None:
    """A limit that the heads exceed and the backbone does not: only the product's own clipping gives this result."""
    recipe = tiny_recipe(clip_norm=2.0)
    reference = plain_reference(recipe)
    norms = reference.norms[-1]
    assert norms["dino_head"] > 2.0 > 0.0
    assert_same_training(run_world(2, train_under_zero, recipe, "")[0], reference)


SCRIPT = ".x.xg."
"""Good steps; steps in which slot 3 has a pixel that is no number; one whose gradient alone is infinite, on rank 0."""
GOOD = [0, 2, 5]


@dataclass
class Witness:
    """What one worker saw of the script."""

    trace: Trace = field(default_factory=Trace)
    skipped: list[tuple[str, tuple[str, ...]] | None] = field(default_factory=list)
    in_a_row: list[int] = field(default_factory=list)
    is_unchanged: list[bool] = field(default_factory=list)
    adam_steps: list[int] = field(default_factory=list)
    error: str = ""
    ids: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)


def bits(engine: ZeroEngine, training: TrainingStep, stage: int) -> dict[str, Tensor]:
    """Everything that a skipped step must leave alone: of the student, the master parameters and moments too."""
    student = {}
    if stage < 3:  # which has them whole at times
        student = {f"student|{name}": value.clone() for name, value in training.student.state_dict().items()}
    return student | whole_state(training, engine)


@contextmanager
def infinite_gradient(engine: ZeroEngine, is_on: bool) -> Iterator[None]:
    hook = (lambda gradient: gradient * float("inf")) if is_on else (lambda gradient: gradient)
    handle = engine.student.backbone.norm.weight.register_hook(hook)
    yield
    handle.remove()


def run_step(
    training: TrainingStep, engine: Engine, recipe: PretrainRecipe, step: int, kind: str, seen: Witness
) -> Any:
    prepared = step_input(recipe, training.plan, engine.rank, step)
    slots = [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots]
    for index, slot in enumerate(training.plan.slots_of(engine.rank)):
        seen.ids[step, slot] = slots[index].ids
        if kind == "x" and slot == 3:
            crops = slots[index].global_crops.clone()
            crops[1, 0, 2, 2] = float("nan")
            slots[index] = replace(slots[index], global_crops=crops)
    return training.run(step, slots)


def train_through_bad_steps(rank: int, world_size: int, recipe: PretrainRecipe) -> Witness:
    student, teacher = new_networks(recipe)
    engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), CPU_DEVICE)
    training, seen = TrainingStep(recipe, engine, teacher), Witness()
    for step, kind in enumerate(SCRIPT):
        before = bits(engine, training, recipe.training.zero_stage)
        with infinite_gradient(engine, kind == "g" and rank == 0):
            result = run_step(training, engine, recipe, step, kind, seen)
        seen.skipped.append(result.skipped and (result.skipped.reason, result.skipped.sample_ids))
        seen.in_a_row.append(training.learner.skips_in_a_row)
        after = bits(engine, training, recipe.training.zero_stage)
        seen.is_unchanged.append(before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in after))
        seen.adam_steps.append(engine.optimizer_steps)
        if result.skipped is None:
            seen.trace.terms.append(result.terms)
    note_state(seen.trace, training, engine)
    try:
        for step in range(len(SCRIPT), len(SCRIPT) + 3):
            run_step(training, engine, recipe, step, "x", seen)
    except NonFiniteLossError as error:
        seen.error = f"step {step}: {error}"
    engine.close()
    return seen


@pytest.mark.parametrize(("stage", "offload"), [(2, False), (0, False), (1, True), (3, False), (3, True)])
def test_zero_engine__steps_that_are_not_finite_are_left_out_on_all_workers(stage: int, offload: bool) -> None:
    objective = {**CENTRED, "prototypes": 47}  # an odd size: shards have padding
    centred = tiny_recipe(objective, zero_stage=stage, offload_optimizer=offload)
    both = run_world(2, train_through_bad_steps, centred)
    ids = both[1].ids
    for seen in both:
        assert [each is not None for each in seen.skipped] == [kind != "." for kind in SCRIPT]
        assert seen.in_a_row == [0, 1, 0, 1, 2, 0]
        assert seen.is_unchanged == [False, True, False, True, True, False]
        assert seen.adam_steps == [1, 1, 2, 2, 2, 3]
        for step in (1, 3):  # rank 1 alone had the slot
            reason, samples = seen.skipped[step] or ("", ())
            assert reason.startswith(f"step {step} is not finite (loss nan")
            assert samples == ids[step, 3]
        reason, samples = seen.skipped[4] or ("", ())
        assert reason.startswith("step 4 is not finite (gradient norm of backbone ")
        assert samples == ()
        assert seen.error.startswith("step 8: HS-RUN-002: step 8 is not finite (loss nan")
        assert "and neither were the 2 steps before it" in seen.error
        assert ", ".join(ids[8, 3]) in seen.error

    student, teacher = new_networks(centred)
    engine = PlainEngine(student, centred.training)
    undisturbed, trace = TrainingStep(centred, engine, teacher), Trace()
    for step in GOOD:
        trace.terms.append(run_step(undisturbed, engine, centred, step, ".", Witness()).terms)
    note_state(trace, undisturbed, engine)
    for seen in both:
        assert_same_training(seen.trace, trace)
