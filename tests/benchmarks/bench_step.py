"""The training step: ``TrainingStep`` with ``PlainEngine`` beside a plain reference of the same mathematics.

Both start from the same weights and take the same prepared slot, so that loading data is not measured. Each runs in a
process of its own, and they take turns. Before anything is timed, loss terms and gradient norms of three steps must
agree; else there is no result.

Ratios:
    fp32_speed, bf16_speed: time of the reference over ours, ViT-S/14 at 65,536 shared prototypes with softmax centring.
        Void (null, with a note) where the reference reaches less than 45 % (fp32) or 35 % (bf16) of the rate of
        ``torch.matmul``, the faster of a square product and one of the step's own: it would be a straw man.
    memory_131k: peak memory of ours over the reference's, in fp32 at 131,072 prototypes, two heads, Sinkhorn-Knopp:
        smaller is better. Peaks are whole processes, Python and libraries included. Ours recomputes whole blocks at
        this size (``activation_checkpointing: full``), the reference keeps everything; ``details.sizes`` has the speed
        that is left, and the memory with ``selective``.

All workers have the environment that the platform gives its own, allocator settings included: ratios compare
implementations. ``reference_default_allocator_*`` (images/s) is the reference as a script that sets nothing.

Floor: no step can be faster than its floating-point operations at the machine's rate of matrix multiplication, which is
measured in the same turns and precision. ``floor_fraction`` is the share that our bf16 step reaches (bf16 is the
default of a recipe) of the fastest rate of any operator; ``details.fastest_gemm_fraction`` has all four, and
``details.gemm_fraction`` the shares of ``torch.matmul``'s rate. Operations are those of the plain step: what an
implementation saves or repeats does not change the floor. The floor of memory (``floor_gib``) is parameters, gradients,
two moments and the teacher, in fp32, and what a process holds before it builds anything.

With a GPU, ViT-L/14 in bf16 there (``details.gpu``): the reference, ours, and ours compiled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from frame import RUNS, BenchResult, run_bench, significant, tell
from step_figures import Figures, size_details
from step_processes import WorkerFailedError, plain_environment, platform_environment
from step_sizes import PRECISIONS, SIZES, Precision, Size
from step_turns import Candidates, Plan, Progress, compare, measure_plan, platform_plan, standard_candidates

QUICK, SPEED, MEMORY, GPU = "demo", "vit_s14_65k", "vit_s14_131k", "vit_l14"
MEMORY_SELECTIVE = f"{MEMORY}_selective"
_MEMORY_RUNS = 3
_PLAIN_RUNS = 2
_GPU_ABSENT = "No GPU: ViT-L/14 in bf16 was not measured."

BySize = Mapping[str, Mapping[Precision, Figures]]


def plain_plan(name: str, size: Size, precision: Precision) -> Plan:
    """The reference alone, in a plain script's environment, after one step to warm up."""
    label = f"{name} {precision} default allocator"
    candidates: Candidates = {"reference": ("reference", size)}
    return Plan(label, size, precision, candidates, plain_environment(), _PLAIN_RUNS, compared_steps=1)


def measure_sizes(
    sizes: Mapping[str, tuple[Size, int]], precisions: Sequence[Precision] = PRECISIONS
) -> dict[str, dict[Precision, Figures]]:
    """Measure sizes, each in as many turns as said.

    One precision after the other: four implementations at once need more memory than a small machine has.
    """
    plans = {
        (name, precision): (platform_plan(name, size, precision, runs), plain_plan(name, size, precision))
        for name, (size, runs) in sizes.items()
        for precision in precisions
    }
    progress = Progress(sum(plan.work for pair in plans.values() for plan in pair))
    figures: dict[str, dict[Precision, Figures]] = {}
    for (name, precision), (beside, alone) in plans.items():
        found = measure_plan(beside, progress)
        figures.setdefault(name, {})[precision] = Figures(found, measure_plan(alone, progress))
    return figures


def measure_gpu(size: Size, compiled_size: Size, device: str = "cuda", runs: int = RUNS) -> dict[str, Any]:
    """Ours beside the reference in bf16 on a GPU, then ours at the size that says to compile; the three agree.

    Compiled is measured after the others have ended: three at once need more memory than a GPU of 80 GiB has.

    Raises:
        DisagreementError: they do not.
        WorkerFailedError: one failed, for want of memory for instance.
    """
    environment = platform_environment(device)
    compiled: Candidates = {"ours_compiled": ("ours", compiled_size), "gemm": ("gemm", size)}
    plans = [
        Plan("GPU bf16", size, "bf16", standard_candidates(size), environment, runs, device),
        Plan("GPU bf16 compiled", size, "bf16", compiled, environment, runs, device),
    ]
    progress = Progress(sum(plan.work for plan in plans))
    eager, after = (Figures(measure_plan(plan, progress)) for plan in plans)
    told = {"reference": eager.found.told["reference"], "ours_compiled": after.found.told["ours_compiled"]}
    difference = compare(told, after.found.plan)
    compiled_shares = after.fractions(after.matmul_rate())
    details = eager.details()
    details["images_per_s"] |= {name: significant(rate.median) for name, rate in after.images_per_s().items()}
    details["memory"] |= after.memory()
    details["gemm_fraction"] |= {name: significant(share) for name, share in compiled_shares.items()}
    details["largest_difference_compiled"] = significant(difference or 0.0)
    return details | {"size": asdict(size), "measured": eager.measured() | after.measured()}


def _gpu_part() -> tuple[dict[str, Any] | None, str]:
    if not torch.cuda.is_available():
        return None, _GPU_ABSENT
    try:
        found = measure_gpu(SIZES[GPU], replace(SIZES[GPU], compile=True))
    except WorkerFailedError as error:  # too small a GPU must not cost the rest
        tell(f"GPU: {error}")
        return None, f"The part on the GPU failed: {error}."
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found["gemm_fraction"].items())
    return found, f"On the GPU, {GPU} in bf16, share of the matmul rate: {shares}."


def measure(quick: bool) -> BenchResult:
    """The bench."""
    if quick:
        return result(measure_sizes({QUICK: (SIZES[QUICK], RUNS)}), QUICK, None, "Quick: no GPU part, no ratios.")
    gpu, note = _gpu_part()  # first: if it fails for good, it fails early
    figures = measure_sizes({SPEED: (SIZES[SPEED], RUNS), MEMORY: (SIZES[MEMORY], _MEMORY_RUNS)})
    figures |= measure_sizes({MEMORY_SELECTIVE: (SIZES[MEMORY_SELECTIVE], 1)}, ["fp32"])
    return result(figures, SPEED, gpu, note)


def result(by_size: BySize, shown: str, gpu: dict[str, Any] | None, gpu_note: str) -> BenchResult:
    """The result; ``shown`` is the size whose shares are told first."""
    notes = [_shares_note(shown, by_size[shown])]
    ratios: dict[str, float | None] = {"fp32_speed": None, "bf16_speed": None, "memory_131k": None}
    floor = None
    if SPEED in by_size:
        for precision, each in by_size[SPEED].items():
            ratios[f"{precision}_speed"], reason = each.judged_speed()
            notes += [reason] if reason else []
        bf16 = by_size[SPEED]["bf16"]
        floor = bf16.fractions(bf16.fastest_rate())["ours"]
    if MEMORY in by_size:
        ratios["memory_131k"] = by_size[MEMORY]["fp32"].memory_ratio()
        notes.append(_memory_note(by_size[MEMORY]))
    if MEMORY_SELECTIVE in by_size:
        other = by_size[MEMORY_SELECTIVE]["fp32"].memory_ratio()
        notes.append(f"With activation_checkpointing selective instead of full memory_131k is {other:.3g}.")
    measured = {
        name: row for size in by_size.values() for each in size.values() for name, row in each.measured().items()
    }
    details = _first_details(by_size[shown]) | {
        "sizes": {name: size_details(each) for name, each in by_size.items()},
        "gpu": gpu and {name: value for name, value in gpu.items() if name != "measured"},
        "measured": measured | (gpu["measured"] if gpu else {}),
        "notes": [*notes, gpu_note],
    }
    return BenchResult("step", ratios, floor, details)


def _first_details(figures: Mapping[Precision, Figures]) -> dict[str, Any]:
    """What is looked for first, of the size that is shown."""
    by_precision = {precision: each.details() for precision, each in figures.items()}
    flat: dict[str, Any] = {
        share: {
            f"{name}_{precision}": value
            for precision, each in by_precision.items()
            for name, value in each[share].items()
        }
        for share in ("gemm_fraction", "fastest_gemm_fraction")
    }
    for precision, each in by_precision.items():
        flat[f"reference_default_allocator_{precision}"] = each["images_per_s"]["reference_default_allocator"]
    return flat


def _shares_note(name: str, figures: Mapping[Precision, Figures]) -> str:
    shares = [
        f"{each} {precision} {share:.2f}"
        for precision, one in figures.items()
        for each, share in one.fractions(one.matmul_rate()).items()
    ]
    return f"Size {name}. Share of torch.matmul's rate: {', '.join(shares)}."


def _memory_note(figures: Mapping[Precision, Figures]) -> str:
    parts = []
    for precision, each in figures.items():
        memory = each.memory()
        ours, theirs, plain = (memory[name] for name in ("ours", "reference", "reference_default_allocator"))
        parts.append(
            f"{precision} {ours['peak_gib']:.3g} GiB against {theirs['peak_gib']:.3g} (with the default allocator "
            f"{plain['peak_gib']:.3g}); {ours['floor_gib']:.3g} GiB is the floor"
        )
    return f"Peak memory at 131,072 prototypes: {'; '.join(parts)}."


if __name__ == "__main__":
    run_bench("step", __doc__, measure)
