"""``heliostat run RECIPE``: any kind of recipe on an embedded Ray of this machine."""

import os
from typing import Annotated

import typer

from heliostat.config import ResolvedRecipe, load_recipe
from heliostat.config.curate import CurateRecipe
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.errors import CommandLineError
from heliostat_jobs.cli.options import DebugOption, JsonOption, RecipeArgument, SetOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra


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
    if isinstance(resolved.recipe, EvaluateRecipe):
        _evaluate(resolved.recipe, json)
        return
    if isinstance(resolved.recipe, CurateRecipe):
        _curate(resolved, address, json)
        return
    from heliostat_jobs.pretrain import pretrain

    if single_process and address is not None:
        raise CommandLineError("--single-process and --address exclude each other", "Leave one of them out")
    result = pretrain(resolved, single_process=single_process, address=address)
    if json:
        print_json(result.to_json())
        return
    loss = "" if result.loss is None else f", loss {result.loss:.3f}"
    rate = "" if result.images_per_s is None else f", {result.images_per_s:.0f} images/s"
    what = "was finished already" if result.was_finished else "finished"
    typer.echo(f"{result.run} {what}: {result.steps} steps{loss}{rate}")
    typer.echo(f"run directory: {result.directory}")


def _curate(resolved: ResolvedRecipe, address: str | None, json: bool) -> None:
    from heliostat_jobs.curate import curate

    result = curate(resolved, address=address)
    if json:
        print_json(result.to_json())
        return
    typer.echo("\n".join(result.summary()))


def _evaluate(recipe: EvaluateRecipe, json: bool) -> None:
    from heliostat_jobs.evaluate import evaluate

    result = evaluate(recipe)
    if json:
        print_json(result.to_json())
        return
    for feature, by_k in result.accuracies.items():
        shown = "  ".join(f"k={k}: {accuracy.top1:.1%}" for k, accuracy in by_k.items())
        typer.echo(f"{feature:<12} {shown}")
