"""``heliostat config show|schema|diff``: what a recipe means, before anything is run."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from heliostat.config import Difference, diff_recipes, load_recipe, lock, recipe_json_schema
from heliostat.config.keys import values_of
from heliostat.config.load import ResolvedRecipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.yaml_text import show_value
from heliostat_jobs.cli.exit_codes import ExitCode
from heliostat_jobs.cli.options import DebugOption, JsonOption, RecipeArgument, SetOption
from heliostat_jobs.cli.output import print_json, print_table

app = typer.Typer(help="What a recipe means: its values and their origins, its schema, its differences.")


@app.command()
def show(
    recipe: RecipeArgument, overrides: SetOption = None, json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Print every value of a recipe and where it comes from."""
    resolved = load_recipe(recipe, overrides or [], os.environ)
    if json:
        print_json(lock(resolved))
    else:
        print_table(values_table(resolved))


@app.command()
def schema(
    kind: Annotated[str | None, typer.Argument(help="Only this kind of recipe.", show_default=False)] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print the JSON schema of recipes, with which editors complete and check them; with --json on one line."""
    print_json(recipe_json_schema(kind), indent=None if json else 2)


@app.command()
def diff(left: RecipeArgument, right: RecipeArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Compare the resolved values of two recipes. Exit status: 0 they are equal, 1 they differ."""
    differences = diff_recipes(*(load_recipe(path, [], os.environ).recipe for path in (left, right)))
    if json:
        print_json({"equal": not differences, "differences": [difference._asdict() for difference in differences]})
    elif differences:
        print_table(_differences_table(differences, left.name, right.name))
    else:
        typer.echo(f"{left.name} and {right.name} have the same values")
    if differences:
        raise typer.Exit(ExitCode.FAILED)


def values_table(resolved: ResolvedRecipe) -> Table:
    """Every value and its origin, an empty line between sections; what somebody chose stands out from defaults."""
    table = Table("key", "value", "origin", box=None, pad_edge=False)
    section = ""
    for key, value, origin in _rows(resolved):
        if (group := key.rpartition(".")[0]) != section:
            section = group
            table.add_row()
        style = "dim" if origin == "default" else ""
        table.add_row(*(Text(text, style=style, overflow="fold") for text in (key, show_value(value), origin)))
    return table


def _rows(resolved: ResolvedRecipe) -> Iterator[tuple[str, Any, str]]:
    """Key, value and origin; of a pipeline those of its stages' recipes one by one."""
    for key, value in values_of(resolved.recipe).items():
        if not isinstance(resolved.recipe, PipelineRecipe) or key != "stages":
            yield key, value, resolved.origins[key]
            continue
        for stage in resolved.recipe.expanded:
            for own, of_stage in (stage.config or {}).items():
                yield f"{stage.name}.{own}", of_stage, stage.recipe


def _differences_table(differences: list[Difference], left: str, right: str) -> Table:
    table = Table("key", escape(left), escape(right), box=None, pad_edge=False)
    for key, *values in differences:
        shown = ("" if value is None else show_value(value) for value in values)
        table.add_row(*(Text(text, overflow="fold") for text in (key, *shown)))
    return table
