from importlib.resources import files
from pathlib import Path

import pytest

from heliostat.config import load_recipe

RECIPES = sorted(Path(str(files("heliostat_jobs"))).joinpath("recipes").glob("*.yaml"))


def test_recipes__are_shipped() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes__load_and_say_command_hardware_cost_and_score(path: Path) -> None:
    load_recipe(path, [], {})
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nkind:")]
    for word in ("Command:", "Hardware:", "Cost:", "Score:"):
        assert f"# {word}" in header
