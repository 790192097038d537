import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from heliostat.config import KINDS
from heliostat_jobs.cli.app import app

RECIPE = "kind: pretrain\nname: demo\ndataset:\n  name: digits\ntraining:\n  steps: 300\n"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return str(file)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments], env=environ)


def test_show__prints_values_and_origins(recipe: str) -> None:
    result = run("show", recipe, "--set", "training.base_lr=1e-3", "--set", "model.arch=vit_b", HELIOSTAT__SEED="3")
    assert result.exit_code == 0
    rows = [line.split(maxsplit=2) for line in map(str.rstrip, result.stdout.splitlines())]
    for row in (
        ["seed", "3", "environment HELIOSTAT__SEED"],
        ["training.steps", "300", "recipe.yaml:6"],
        ["training.base_lr", "0.001", "--set"],
        ["model.heads", "12", "arch vit_b"],
        ["training.clip_norm", "3.0", "default"],
    ):
        assert row in rows


def test_show__json_is_the_lock(recipe: str) -> None:
    result = run("show", recipe, "--set", "seed=3", "--json")
    assert json.loads(result.stdout)["values"]["seed"] == {"value": 3, "origin": "--set"}
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("trainng.steps=3", "HS-CONF-003", ["trainng.steps", "--set", "training.steps"]),
        ("training.global_batch=100", "HS-CONF-006", ["100", "64", "128"]),
        ("scaling.workers=33", "HS-CONF-007", ["33", "32 slots"]),
        ("training.steps=-1", "HS-CONF-004", ["training.steps is -1", "greater than 0"]),
        ("training.steps", "HS-CONF-005", ["not key=value"]),
    ],
)
def test_show__bad_input_is_one_line_with_code_value_rule_and_way_out(
    recipe: str, override: str, code: str, parts: list[str]
) -> None:
    result = run("show", recipe, "--set", override)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {code}: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_show__a_typo_in_the_file_names_its_line(recipe: str) -> None:
    Path(recipe).write_text(RECIPE.replace("steps", "stepps"), encoding="utf-8")
    result = run("show", recipe, "--json")
    assert json.loads(result.stdout)["error"] == {
        "code": "HS-CONF-003",
        "message": "unknown key training.stepps (recipe.yaml:6)",
        "next_step": "The nearest key is training.steps",
    }


def test_schema__of_all_kinds_and_of_one() -> None:
    assert set(json.loads(run("schema").stdout)["discriminator"]["mapping"]) == set(KINDS)
    one = run("schema", "evaluate", "--json")
    assert json.loads(one.stdout)["title"] == "EvaluateRecipe"
    assert one.stdout.count("\n") == 1
    assert run("schema", "evalute").exit_code == 2


def test_diff__is_0_for_equals_and_1_for_others(recipe: str, tmp_path: Path) -> None:
    other = tmp_path / "other[1].yaml"
    other.write_text(RECIPE + "seed: 5\n", encoding="utf-8")
    same, changed = run("diff", recipe, recipe), run("diff", recipe, str(other))
    assert (same.exit_code, same.stdout) == (0, "recipe.yaml and recipe.yaml have the same values\n")
    assert changed.exit_code == 1
    assert [line.split() for line in changed.stdout.splitlines()] == [
        ["key", "recipe.yaml", "other[1].yaml"],
        ["seed", "0", "5"],
    ]


def test_diff__as_json(recipe: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("kind: evaluate\nname: demo\nrun: demo\nbank: a\nqueries: b\n", encoding="utf-8")
    result = run("diff", recipe, str(other), "--json")
    assert result.exit_code == 1
    differences = json.loads(result.stdout)["differences"]
    assert differences[0] == {"key": "kind", "left": "pretrain", "right": "evaluate"}
    assert {"key": "training.steps", "left": 300, "right": None} in differences
    assert json.loads(run("diff", recipe, recipe, "--json").stdout) == {"equal": True, "differences": []}
