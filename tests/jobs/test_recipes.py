import re
from importlib.resources import files
from pathlib import Path

import pytest

from heliostat.config import load_recipe

RECIPES = sorted(Path(str(files("heliostat_jobs"))).joinpath("recipes").glob("*.yaml"))

README_RECIPES = re.findall(
    r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text("utf-8"), re.DOTALL
)


def test_recipes__are_shipped() -> None:
    assert RECIPES
    assert len(README_RECIPES) == 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes__load_and_say_command_hardware_cost_and_score(path: Path) -> None:
    load_recipe(path, [], {})
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nkind:")]
    for word in ("Command:", "Hardware:", "Cost:", "Score:"):
        assert f"# {word}" in header


@pytest.mark.parametrize("block", README_RECIPES, ids=lambda block: block.split()[1])
def test_readme__its_recipes_load(block: str, tmp_path: Path) -> None:
    # A pipeline has the recipes of its stages beside it: here the README's own.
    by_kind = {text.split()[1]: text for text in README_RECIPES}
    beside = {"curate": "curate", "recipe": "pretrain", "judge-photos": "evaluate", "judge-drawings": "evaluate"}
    for name, kind in beside.items():
        (tmp_path / f"{name}.yaml").write_text(by_kind[kind], encoding="utf-8")
    path = tmp_path / "written.yaml"
    path.write_text(block, encoding="utf-8")
    assert load_recipe(path, [], {}).recipe.name in ("my-run", "knn", "best", "whole", "small-ones", "sharper")
