"""``heliostat run RECIPE``: any kind of recipe on an embedded Ray of this machine."""

import os
from typing import Annotated

import typer

from heliostat.config import ResolvedRecipe, load_recipe
from heliostat.config.training import TrainingRecipe
from heliostat.errors import CommandLineError
from heliostat_jobs.cli.options import DebugOption, JsonOption, RecipeArgument, SetOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra
from heliostat_jobs.kinds import JOB_KINDS, JobResult


def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    single_process: Annotated[
        bool,
        typer.Option(
            "--single-process",
            help="Pre-train in this process, without Ray and DeepSpeed: to debug. The same numbers, one worker.",
            show_default=False,
        ),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster that this machine belongs to: train there.", show_default=False),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe on this machine, or resume it: the same name and configuration continue where they stopped."""
    resolved = load_recipe(recipe, set_ or [], os.environ)
    require_extra("train,cpu", "torch", "ray", "deepspeed", "faiss")
    if single_process:
        if address is not None:
            raise CommandLineError("--single-process and --address exclude each other", "Leave one of them out")
        if not isinstance(resolved.recipe, TrainingRecipe):
            raise CommandLineError("--single-process is for recipes of kind pretrain, adapt or distill", "Leave it out")
        result = _train_alone(resolved)
    else:
        result = JOB_KINDS[resolved.recipe.kind].carry_out(resolved, address, None)
    if json:
        print_json(result.to_json())
        return
    typer.echo("\n".join(result.summary()))


def _train_alone(resolved: ResolvedRecipe) -> JobResult:
    from heliostat_jobs.train import train

    return train(resolved, single_process=True)
