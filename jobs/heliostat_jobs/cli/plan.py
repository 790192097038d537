"""``heliostat plan RECIPE``: what a job needs, costs, reads and writes, and what would stop it; starts nothing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from heliostat.config import ResolvedRecipe, load_recipe, lock
from heliostat.config.distill import DistillRecipe, backbone_as_teacher
from heliostat.config.kinds import Recipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import recipe_of
from heliostat.config.training import TrainingRecipe
from heliostat.errors import HeliostatError
from heliostat.observe.status import duration
from heliostat.storage import open_store
from heliostat.training.planning.plan import Machine, Plan, WorkersPlan
from heliostat.training.planning.plan import plan as plan_run
from heliostat_jobs.cli.config_commands import values_table
from heliostat_jobs.cli.options import (
    AddressOption,
    DebugOption,
    InsecureOption,
    JsonOption,
    RecipeArgument,
    SecretOption,
    SetOption,
)
from heliostat_jobs.cli.output import print_json, print_table
from heliostat_jobs.preflight import Check, Transfer, checks, reads, writes
from heliostat_jobs.runs import load_run

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
    price: Annotated[
        float | None,
        typer.Option(
            "--price", min=0, help="Of a worker per hour; the recipe's scaling.worker_price_per_hour if not given."
        ),
    ] = None,
    address: AddressOption = None,
    secret: SecretOption = None,
    insecure: InsecureOption = False,
    config: Annotated[
        bool, typer.Option("--config", help="Print every value and its origin first.", show_default=False)
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print what a job needs on several numbers of GPUs, what it reads and writes, and whether submit would take it.

    Starts nothing and needs no cluster.
    """
    resolved = load_recipe(recipe, set_ or [], os.environ)
    machine = Machine(gpu, gpu_memory_gib, mfu, price)
    plans = [plan_run(each, gpus, machine, teacher) for each, teacher in _trainings(resolved.recipe)]
    looked = checks(resolved, address=address, insecure=insecure, secrets=secret or ())
    read, written = _transfers(resolved.recipe)
    if json:
        numbers = plans[0].to_json() if plans and isinstance(resolved.recipe, TrainingRecipe) else {}
        stages = [each.to_json() for each in plans] if isinstance(resolved.recipe, PipelineRecipe) else []
        print_json({**numbers, "stages": stages, **_to_json(resolved, looked, read, written)})
    else:
        if config:
            print_table(values_table(resolved))
        _print(resolved.recipe.root, plans, looked, (*read, *written))


def _trainings(recipe: Recipe) -> Iterator[tuple[TrainingRecipe, PretrainRecipe | None]]:
    """The recipe itself, or those of a pipeline's stages; of a distillation with the recipe of its teacher.

    Where nobody knows that yet there is nothing to plan with; one of the checks says so.
    """
    found = [recipe_of(stage.config or {}) for stage in recipe.expanded] if isinstance(recipe, PipelineRecipe) else []
    stages = {each.name: each for each in found if isinstance(each, PretrainRecipe)}
    for each in found or [recipe]:
        if isinstance(each, DistillRecipe):
            teacher = _teacher(each, stages)
            if teacher is not None:
                yield each, teacher
        elif isinstance(each, PretrainRecipe):
            yield each, None


def _teacher(recipe: DistillRecipe, stages: Mapping[str, PretrainRecipe]) -> PretrainRecipe | None:
    run, weights = recipe.teacher.run, recipe.teacher.weights
    if run is not None:
        return stages.get(run) or _stored(recipe.root, run)
    from heliostat.models.weights.download import RELEASED_GRID, released_model

    model = None if weights is None else released_model(weights)
    return None if model is None else backbone_as_teacher(recipe, model, RELEASED_GRID)


def _stored(root: str, run: str) -> PretrainRecipe | None:
    try:
        recipe = load_run(open_store(root), run)
    except HeliostatError:
        return None
    return recipe if isinstance(recipe, PretrainRecipe) else None


def _transfers(recipe: Recipe) -> tuple[list[Transfer], list[Transfer]]:
    try:
        root = open_store(recipe.root)
    except HeliostatError:  # one of the checks says so
        return [], writes(recipe)
    return reads(recipe, root), writes(recipe)


def _to_json(
    resolved: ResolvedRecipe, looked: Sequence[Check], read: Sequence[Transfer], written: Sequence[Transfer]
) -> dict[str, Any]:
    return {
        "config": lock(resolved)["values"],
        "checks": [check.to_json() for check in looked],
        "reads": [asdict(each) for each in read],
        "writes": [asdict(each) for each in written],
    }


def _print(root: str, plans: Sequence[Plan], looked: Sequence[Check], transfers: Sequence[Transfer]) -> None:
    for made in plans:
        print_table(_table(made))
        for line in _notes(made):
            typer.echo(line)
        typer.echo()
    for each in transfers:
        size = "" if each.size_bytes is None else f", {each.size_bytes / _GIB:,.3g} GiB"
        typer.echo(f"{each.verb} {root}/{each.place}: {each.what}{size}")
    for check in looked:
        typer.echo(f"check {check.name}: {'ok' if check.problem is None else check.problem}")
    problems = sum(check.problem is not None for check in looked)
    typer.echo(f"submit would {f'fail on {problems} of these' if problems else 'take it'}")


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    memory = ("params", "grads", "optim", "teacher", "buffers", "activ.", "GiB/GPU")
    stages = tuple(f"ZeRO {stage}" for stage in plan.by_workers[0].device_bytes_by_stage)
    speed = ("sent GiB", "PFLOP", "step", "img/s", "run", "price")
    for name in ("GPUs", "rounds", "idle", "img/GPU", *memory, "fits", *stages, *speed):
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
        *(f"{size / _GIB:.1f}" for size in line.device_bytes_by_stage.values()),
        f"{line.sent_bytes / _GIB:.1f}",
        f"{line.flops.executed / 1e15:.3g}",
        f"{line.step_s:.3g} s",
        f"{line.images_per_s:,.0f}",
        f"{line.run_s / _DAY_S:.1f} d" if line.run_s > _DAY_S else duration(line.run_s),
        "" if line.price is None else f"{line.price:,.0f}",
    ]


def _parameters(plan: Plan) -> str:
    count = f"{plan.student_parameters:,} parameters ({plan.backbone_parameters:,} of the backbone"
    if not plan.flops_by_network:
        return f"{count}), student and teacher alike"
    parts = [f"{name} {each / plan.flops_per_image:.0%}" for name, each in plan.flops_by_network.items()]
    return f"{count}s) in {len(parts) - 1} students, each with an average alike; of the operations {', '.join(parts)}"


def _notes(plan: Plan) -> list[str]:
    machine = plan.machine
    host = plan.by_workers[0].memory.host_bytes + plan.by_workers[0].snapshot_bytes
    return [
        "",
        f"{plan.run}: {_parameters(plan)}; {plan.slots} slots of {plan.global_batch // plan.slots} images, ZeRO stage "
        f"{plan.zero_stage}, {plan.precision}, activation checkpointing {plan.activation_checkpointing}",
        f"time: {plan.flops_per_image / 1e12:.3g} TFLOP per image on {machine.gpu} at an MFU of {machine.mfu:.0%}, "
        "communication hidden behind it",
        f"memory: against {machine.memory_gib:g} GiB; CUDA's own 0.5 GiB and fragmentation are not counted"
        + (f"; {host / _GIB:.1f} GiB more per GPU in host memory" if host else ""),
    ]
