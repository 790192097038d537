import json
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat_jobs.cli.app import app

VIT_G = str(Path(str(files("heliostat_jobs"))) / "recipes" / "pretrain_vitg14_lvd142m.yaml")


def test_plan__prints_a_line_per_number_of_gpus() -> None:
    result = CliRunner().invoke(app, ["plan", VIT_G])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert [row[0] for row in rows[1:7]] == ["8", "16", "32", "64", "128", "256"]
    assert "1,234,919,040 parameters" in result.stdout


def test_plan__json_has_every_number() -> None:
    arguments = ["--gpus", "8", "--gpus", "100", "--gpu", "H100", "--gpu-memory-gib", "20", "--json"]
    result = CliRunner().invoke(app, ["plan", VIT_G, *arguments])
    plan = json.loads(result.stdout)
    first, second = plan["by_workers"]
    assert (first["workers"], first["rounds"], first["idle_share"]) == (8, 32, 0)
    assert second["rounds"] == 3
    assert second["idle_share"] == pytest.approx(44 / 300)
    assert not first["fits"]
    assert first["memory"]["device_bytes"] > 20 * 2**30
    assert plan["machine"]["gpu"] == "H100"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--gpus", "257"], "HS-CONF-007"),
        (["--gpu", "TPU"], "HS-CONF-004"),
        (["--set", "training.precision=fp8"], "HS-CONF-004"),
    ],
)
def test_plan__refuses_what_cannot_be(arguments: list[str], code: str) -> None:
    result = CliRunner().invoke(app, ["plan", VIT_G, *arguments])
    assert result.exit_code == 2
    assert code in result.output
