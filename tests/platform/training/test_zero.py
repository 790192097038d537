"""The engine under DeepSpeed against the plain one, and against itself at other worker counts (DESIGN, section 2)."""

from typing import Any

import pytest
import torch
from support.worlds import Trace, new_networks, run_world, tiny_recipe, train

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import NonFiniteLossError
from heliostat.objectives import losses, networks
from heliostat.objectives.sinkhorn import OneWorker
from heliostat.training.engine import PlainEngine
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
    if plant == "sinkhorn":
        _SeeOnlyThisWorker.plant(engine)
    trace = train(recipe, engine, range(STEPS), teacher, Trace())
    engine.close()
    return trace


class _SeeOnlyThisWorker(OneWorker):
    """Sinkhorn-Knopp per worker; the sums of the losses, which are short vectors in float64, stay global."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._whole.sum(values) if values.numel() <= 4 else values

    @classmethod
    def plant(cls, engine: ZeroEngine) -> None:
        engine.reducer = cls(engine.reducer)


def _plant_per_worker_koleo(recipe: PretrainRecipe, world_size: int) -> None:
    """KoLeo over a batch that depends on the number of workers: a part of the slot instead of the slot."""
    whole = losses.koleo_loss

    def per_worker(cls_BD: torch.Tensor) -> torch.Tensor:
        return whole(cls_BD[: max(2, len(cls_BD) // world_size)])

    setattr(networks, "koleo_loss", per_worker)  # noqa: B010 -- the name that the product looks up


def plain_reference(recipe: PretrainRecipe) -> Trace:
    student, teacher = new_networks(recipe)
    return train(recipe, PlainEngine(student, recipe.training), range(STEPS), teacher, Trace())


@pytest.fixture(scope="module")
def reference() -> Trace:
    return plain_reference(tiny_recipe())


def test_reference__the_loss_moves_enough_for_the_comparisons_to_mean_something(reference: Trace) -> None:
    assert loss_moves(reference) > 0.01


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_zero_engine__any_worker_count_trains_like_one_plain_process(reference: Trace, world_size: int) -> None:
    traces = run_world(world_size, train_under_zero, tiny_recipe(), "")
    for trace in traces:
        assert_same_training(trace, reference)
    seen = [item for trace in traces for item in trace.slots.items()]
    assert len(seen) == len(reference.slots), "a slot was computed by none or by two workers"
    assert dict(seen) == reference.slots  # ids, pixels, masks and drops of every slot, to the last bit
    for trace in traces:
        for norms, expected in zip(trace.norms, reference.norms, strict=True):
            assert norms == pytest.approx(expected, rel=1e-4)


def test_zero_engine__stage_1_trains_like_stage_2(reference: Trace) -> None:
    recipe = tiny_recipe(zero_stage=1)
    for trace in run_world(2, train_under_zero, recipe, ""):
        assert_same_training(trace, reference)


@pytest.mark.parametrize("plant", ["koleo", "sinkhorn"])
def test_zero_engine__a_planted_per_worker_loss_is_found(reference: Trace, plant: str) -> None:
    trace = run_world(2, train_under_zero, tiny_recipe(), plant)[0]
    with pytest.raises(AssertionError):
        assert_same_training(trace, reference)


def test_zero_engine__clips_each_sub_module_by_its_own_norm() -> None:
    """A limit that the heads exceed and the backbone does not: only the product's own clipping gives this result."""
    recipe = tiny_recipe(clip_norm=2.0)
    reference = plain_reference(recipe)
    norms = reference.norms[-1]
    assert norms["dino_head"] > 2.0 > 0.0
    assert_same_training(run_world(2, train_under_zero, recipe, "")[0], reference)


def train_with_an_infinite_gradient(rank: int, world_size: int, recipe: PretrainRecipe) -> tuple[str, bool]:
    """The error that a worker gets, and whether its parameters are what they were."""
    student, teacher = new_networks(recipe)
    engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), torch.device("cpu"))
    before = {name: value.detach().clone() for name, value in student.state_dict().items()}
    if rank == 0:
        student.backbone.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    try:
        train(recipe, engine, range(1), teacher, Trace())
    except NonFiniteLossError as error:
        return str(error), all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    return "no error", False


def test_zero_engine__a_gradient_that_is_not_finite_stops_all_workers_before_the_update() -> None:
    for message, is_unchanged in run_world(2, train_with_an_infinite_gradient, tiny_recipe()):
        assert message.startswith("HS-RUN-002: the gradient norm of backbone is ")
        assert is_unchanged
