"""``heliostat plan RECIPE``: what a run needs and how long it takes, before anything is started."""

import os
from typing import Annotated

import typer
from rich.table import Table

from heliostat.config import load_recipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import InvalidValueError
from heliostat.observe.status import duration
from heliostat.training.planning.plan import Machine, Plan, WorkersPlan
from heliostat.training.planning.plan import plan as plan_run
from heliostat_jobs.cli.options import DebugOption, JsonOption, RecipeArgument, SetOption
from heliostat_jobs.cli.output import print_json, print_table

_GIB = 2**30
_DAY_S = 86400


def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    gpus: Annotated[
        list[int] | None,
        typer.Option("--gpus", min=1, help="A number of workers, one GPU each. Repeatable; 8 to 256 if not given."),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="The GPU: A100, H100, H200, L40S, …")] = "A100",
    gpu_memory_gib: Annotated[float, typer.Option("--gpu-memory-gib", min=0, help="Memory of a GPU.")] = 80.0,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1, help="Share of the GPU's peak that is taken to be reached.")
    ] = 0.4,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print memory per GPU, communication, FLOPs and time of a run on several numbers of GPUs. Starts nothing."""
    resolved = load_recipe(recipe, set_ or [], os.environ).recipe
    if not isinstance(resolved, PretrainRecipe):
        raise InvalidValueError(f"kind {resolved.kind} has no plan", "Give a recipe of kind pretrain")
    made = plan_run(resolved, gpus, Machine(gpu, gpu_memory_gib, mfu))
    if json:
        print_json(made.to_json())
        return
    print_table(_table(made))
    for line in _notes(made):
        typer.echo(line)


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    memory = ("params", "grads", "optim", "teacher", "buffers", "activ.", "GiB/GPU")
    for name in ("GPUs", "rounds", "idle", "img/GPU", *memory, "fits", "sent GiB", "PFLOP", "step", "img/s", "run"):
        table.add_column(name, justify="right")
    for line in plan.by_workers:
        table.add_row(*_row(line), style=None if line.fits else "red")
    return table


def _row(line: WorkersPlan) -> list[str]:
    memory = line.memory
    parts = (
        memory.parameters_bytes,
        memory.gradients_bytes,
        memory.optimizer_bytes,
        memory.teacher_bytes,
        memory.buffers_bytes,
        memory.activations_bytes,
        memory.device_bytes,
    )
    return [
        f"{line.workers}",
        f"{line.rounds}",
        f"{line.idle_share:.0%}",
        f"{line.images_per_worker:.4g}",
        *(f"{part / _GIB:.1f}" for part in parts),
        "yes" if line.fits else "no",
        f"{line.sent_bytes / _GIB:.1f}",
        f"{line.flops.executed / 1e15:.3g}",
        f"{line.step_s:.3g} s",
        f"{line.images_per_s:,.0f}",
        f"{line.run_s / _DAY_S:.1f} d" if line.run_s > _DAY_S else duration(line.run_s),
    ]


def _notes(plan: Plan) -> list[str]:
    machine = plan.machine
    host = plan.by_workers[0].memory.host_bytes
    return [
        "",
        f"{plan.run}: {plan.student_parameters:,} parameters ({plan.backbone_parameters:,} of the backbone), student "
        f"and teacher alike; {plan.slots} slots of {plan.global_batch // plan.slots} images, ZeRO stage "
        f"{plan.zero_stage}, {plan.precision}, activation checkpointing {plan.activation_checkpointing}",
        f"time: {plan.flops_per_image / 1e12:.3g} TFLOP per image on {machine.gpu} at an MFU of {machine.mfu:.0%}, "
        "communication hidden behind it",
        f"memory: against {machine.memory_gib:g} GiB; CUDA's own 0.5 GiB and fragmentation are not counted"
        + (f"; {host / _GIB:.1f} GiB more per GPU in host memory" if host else ""),
    ]
