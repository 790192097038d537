"""The training step: ``TrainingStep`` with ``PlainEngine`` beside a plain reference of the same mathematics.

Both start from the same weights and take the same prepared slot, so that loading data is not measured. Before anything
is timed, loss terms and gradient norms of some steps must agree; else there is no result.

Ratios (ours over the reference, larger is better):
    fp32_speed, bf16_speed: steps per second.
    memory_131k: peak memory at 131,072 prototypes; not measured here yet.

Floor: no step can be faster than its floating-point operations at the machine's rate of matrix multiplication, which is
measured in the same turns, in the same precision. ``floor_fraction`` is the share of that rate that our bf16 step
reaches (bf16 is the default of a recipe); ``details.gemm_fraction`` has all four. Operations are those of the
reference's step, counted by PyTorch: work that an implementation repeats or saves does not change the floor.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from frame import RUNS, BenchResult, Spread, in_turns, run_bench, significant, tell
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.draws import Draws
from heliostat.models.normalise import normalise
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.objectives.networks import Network, SlotBatch
from heliostat.training.engine import PlainEngine
from heliostat.training.phases import PhaseClock
from heliostat.training.step import TrainingStep
from reference_step import ReferenceStep

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GEMM_SIDE = 2048
_GEMM_REPEATS = 4
_COMPARED_STEPS = 3
_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""Relative, on loss terms and gradient norms: rounding differs, and bf16 keeps eight bits."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a step is measured on; one slot per step."""

    arch: str
    embed_dim: int
    depth: int
    heads: int
    patch_px: int
    global_px: int
    local_px: int
    local_count: int
    images: int
    prototypes: int
    head_hidden: int
    head_bottleneck: int
    drop_path: float
    steps_per_turn: int

    def recipe(self, precision: Precision) -> PretrainRecipe:
        """The recipe of this size."""
        return PretrainRecipe.model_validate(
            {
                "kind": "pretrain",
                "name": "bench",
                "dataset": {"name": "bench"},
                "model": {name: getattr(self, name) for name in _MODEL_KEYS} | {"layer_scale": 1.0},
                "augmentation": {name: getattr(self, name) for name in ("global_px", "local_px", "local_count")},
                "objective": {
                    "prototypes": self.prototypes,
                    "head_hidden": self.head_hidden,
                    "head_bottleneck": self.head_bottleneck,
                },
                "training": {
                    "steps": 1000,
                    "global_batch": self.images,
                    "slot_batch": self.images,
                    "warmup_steps": 0,
                    "freeze_prototypes_steps": 0,
                    "precision": precision,
                },
            }
        )


_MODEL_KEYS = ("arch", "embed_dim", "depth", "heads", "patch_px", "drop_path")

SIZES = {
    # arch, width, depth, heads, patch, crops (px, px, local), images, prototypes, hidden, bottleneck, drop, steps
    "demo": Size("custom", 128, 4, 4, 8, 48, 24, 4, 32, 512, 256, 64, 0.3, 4),
    "vit_s14_65k": Size("vit_s", 384, 12, 6, 14, 224, 98, 8, 8, 65536, 2048, 256, 0.3, 1),
}
QUICK, FULL = "demo", "vit_s14_65k"


def prepared_slot(recipe: PretrainRecipe, seed: int = 0) -> SlotBatch:
    """A slot of smooth noise, with the masks and drops of the recipe."""
    rng = np.random.default_rng(seed)
    augmentation, images = recipe.augmentation, recipe.training.slot_batch

    def crops(count: int, px: int) -> Tensor:
        coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 6)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bilinear")
        return normalise(smooth.byte().permute(0, 2, 3, 1).contiguous().numpy())

    objective = recipe.objective
    grid = augmentation.global_px // recipe.model.patch_px
    groups = (2 * images, augmentation.local_count * images)
    return SlotBatch(
        global_crops=crops(groups[0], augmentation.global_px),
        local_crops=crops(groups[1], augmentation.local_px),
        masks=draw_masks(Draws(seed, "mask", 0, 0), groups[0], grid, objective.mask_probability, objective.mask_ratio),
        drops=draw_drops(seed, 0, 0, recipe.model.depth, groups, recipe.model.drop_path),
    )


class _Stepper:
    """One implementation in one precision, from step 0 on."""

    def __init__(self, advance: Callable[[int], tuple[dict[str, float], dict[str, float]]]) -> None:
        self._advance = advance
        self._step = 0

    def run(self, steps: int) -> dict[str, float]:
        """Some steps; what the last one told."""
        told: dict[str, float] = {}
        for _ in range(steps):
            terms, norms = self._advance(self._step)
            told = {**terms, **{f"norm of {name}": norm for name, norm in norms.items()}}
            self._step += 1
        return told


def ours(recipe: PretrainRecipe, slot: SlotBatch) -> _Stepper:
    """The product's step."""
    student, teacher = Network(recipe), Network(recipe)
    student.init_weights(recipe.seed)
    teacher.load_state_dict(student.state_dict())
    training = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher, PhaseClock())

    def advance(step: int) -> tuple[dict[str, float], dict[str, float]]:
        result = training.run(step, [slot])
        return result.terms, result.gradient_norms

    return _Stepper(advance)


def reference(recipe: PretrainRecipe, slot: SlotBatch) -> _Stepper:
    """The plain step."""
    start = Network(recipe)
    start.init_weights(recipe.seed)
    plain = ReferenceStep(recipe, start.state_dict())
    return _Stepper(lambda step: plain.run(step, slot))


def count_flops(recipe: PretrainRecipe, slot: SlotBatch) -> int:
    """Floating-point operations of one step: matrix products and convolutions, forward and backward."""
    stepper = reference(recipe, slot)
    # The counter does not know the fused attention of CPUs; the plain one is made of products that it knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stepper.run(1)
    return int(counter.get_total_flops())


def largest_difference(mine: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest relative difference of what two steps told."""
    return max(abs(mine[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in theirs)


def measure_size(size: Size, runs: int = RUNS) -> BenchResult:
    """Measure both implementations in both precisions on one size.

    Raises:
        ValueError: the two do not compute the same.
    """
    recipes = {precision: size.recipe(precision) for precision in PRECISIONS}
    slot = prepared_slot(recipes["fp32"])
    flops = count_flops(recipes["fp32"], slot)
    tell(f"{flops / 1e9:.4g} GFLOP per step, {torch.get_num_threads()} threads")
    steppers = {
        f"{name}_{precision}": make(recipes[precision], slot)
        for precision in PRECISIONS
        for name, make in (("ours", ours), ("reference", reference))
    }
    differences = {precision: _compare(steppers, precision) for precision in PRECISIONS}
    candidates: dict[str, Callable[[], object]] = {
        name: lambda stepper=stepper: stepper.run(size.steps_per_turn)  # type: ignore[misc]
        for name, stepper in steppers.items()
    }
    candidates |= {f"gemm_{precision}": _gemm(_DTYPES[precision]) for precision in PRECISIONS}
    costs = in_turns(candidates, runs=runs)
    return _result(size, flops, costs, differences)


def _compare(steppers: dict[str, _Stepper], precision: Precision) -> float:
    difference = 0.0
    for step in range(_COMPARED_STEPS):
        told = [steppers[f"{name}_{precision}"].run(1) for name in ("ours", "reference")]
        difference = max(difference, largest_difference(*told))
        if not difference <= _TOLERANCE[precision]:
            raise ValueError(f"at step {step} in {precision} ours and the reference differ: {told[0]} and {told[1]}")
    tell(f"{precision}: ours and the reference agree to {difference:.1e} over {_COMPARED_STEPS} steps")
    return difference


def _gemm(dtype: torch.dtype) -> Callable[[], None]:
    left, right = (torch.randn(_GEMM_SIDE, _GEMM_SIDE).to(dtype) for _ in range(2))

    def run() -> None:
        for _ in range(_GEMM_REPEATS):
            left @ right

    return run


def _result(size: Size, flops: int, costs: dict[str, Spread], differences: dict[Precision, float]) -> BenchResult:
    gemm_flops = 2 * _GEMM_SIDE**3 * _GEMM_REPEATS
    rates = {
        name: spread.per((gemm_flops if name.startswith("gemm") else flops * size.steps_per_turn) / 1e9)
        for name, spread in costs.items()
    }
    fractions = {
        name: rate.over(rates[f"gemm_{name.rpartition('_')[2]}"]).median
        for name, rate in rates.items()
        if not name.startswith("gemm")
    }
    measured: dict[str, Any] = {}
    for name, spread in costs.items():
        if name.startswith("gemm"):
            measured[name] = rates[name].summary("GFLOP/s")
        else:
            measured[name] = spread.per(size.images * size.steps_per_turn).summary("images/s")
    speeds = {precision: costs[f"reference_{precision}"].over(costs[f"ours_{precision}"]) for precision in PRECISIONS}
    measured |= {f"{precision}_speed": speed.summary("ratio") for precision, speed in speeds.items()}
    return BenchResult(
        bench="step",
        ratios={
            **{f"{precision}_speed": speed.median for precision, speed in speeds.items()},
            "memory_131k": None,
        },
        floor_fraction=fractions["ours_bf16"],
        details={
            "size": asdict(size),
            "gflop_per_step": significant(flops / 1e9),
            "threads": torch.get_num_threads(),
            "gemm_fraction": {name: significant(fraction) for name, fraction in fractions.items()},
            "largest_difference": {name: significant(value) for name, value in differences.items()},
            "measured": measured,
        },
    )


def measure(quick: bool) -> BenchResult:
    """The bench."""
    name = QUICK if quick else FULL
    result = measure_size(SIZES[name])
    fractions = result.details["gemm_fraction"]
    note = f"Size {name}. Share of the GEMM rate: " + ", ".join(f"{each} {fractions[each]:.2f}" for each in fractions)
    return BenchResult(result.bench, result.ratios, result.floor_fraction, {**result.details, "notes": [f"{note}."]})


if __name__ == "__main__":
    run_bench("step", __doc__, measure)
