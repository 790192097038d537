"""What would stop a submission is told before it, and what a job reads and writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.projects import store_images, write_recipe
from typer.testing import CliRunner

from heliostat.config import load_recipe
from heliostat.errors import DatasetNotFoundError
from heliostat.storage.local import LocalStore
from heliostat_jobs.cli.app import app
from heliostat_jobs.kinds import job_of
from heliostat_jobs.locks import find_or_create_lock
from heliostat_jobs.preflight import checks, raise_first


def plan(path: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(path), "--json", *arguments])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def problems(told: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["error"]["code"] for check in told["checks"] if not check["ok"]}


@pytest.fixture(autouse=True)
def _no_token_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> LocalStore:
    root = LocalStore(tmp_path / "root")
    store_images(root)
    return root


def test_plan__of_what_can_be_submitted_has_no_problem(root: LocalStore, tmp_path: Path) -> None:
    told = plan(write_recipe(tmp_path / "r.yaml", root.url, steps=9))
    assert problems(told) == {}
    assert {check["check"] for check in told["checks"]} == {f"storage {root.url}", "name tiny", "dataset tiny"}
    assert told["config"]["training.steps"] == {"value": 9, "origin": told["config"]["training.steps"]["origin"]}
    (read,) = told["reads"]
    assert read["place"] == "datasets/tiny"
    size = json.loads(root.get("datasets/tiny/manifest.json")) and sum(
        info.size_bytes for info in root.list("datasets/tiny/shards/") if info.key.endswith(".parquet")
    )
    images = 9 * 16
    rows = int(read["what"].split()[0])
    assert read["size_bytes"] == pytest.approx(size * images / rows)
    checkpoints = told["writes"][0]
    # Every second step, three are kept: fp32 parameters, two moments, and the teacher.
    assert checkpoints["what"] == "5 checkpoints, 3 kept"
    assert checkpoints["size_bytes"] == 3 * 16 * told["student_parameters"]


def test_plan__price_is_hours_of_workers_times_their_price(root: LocalStore, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", root.url)
    line = plan(path, "--gpus", "2", "--price", "3.5")["by_workers"][0]
    assert line["price"] == pytest.approx(2 * 3.5 * line["run_s"] / 3600)
    assert plan(path, "--gpus", "2")["by_workers"][0]["price"] is None
    own = plan(path, "--gpus", "2", "--set", "scaling.worker_price_per_hour=2.0")["by_workers"][0]
    assert own["price"] == pytest.approx(2 * 2.0 * own["run_s"] / 3600)
    by_stage = {int(stage): size for stage, size in line["device_bytes_by_stage"].items()}
    assert list(by_stage) == [0, 1, 2, 3]
    assert by_stage[2] == pytest.approx(line["memory"]["device_bytes"])


def test_checks__name_what_is_missing_taken_or_unreachable(root: LocalStore, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", root.url)
    assert problems(plan(path, "--set", "dataset.name=nothing")) == {"dataset nothing": "HS-DATA-003"}
    resolved = load_recipe(path, [], {})
    find_or_create_lock(job_of(resolved.recipe, root).store, resolved, lambda: {"manifests": {"tiny": "0" * 64}})
    assert problems(plan(path)) == {}
    assert problems(plan(path, "--set", "training.base_lr=0.5")) == {"name tiny": "HS-CONF-008"}
    assert problems(plan(path, "--secret", "KEY=canary")) == {"secrets": "HS-CONF-011"}
    assert problems(plan(path, "--address", "http://10.1.2.3:8265")) == {
        "access to http://10.1.2.3:8265": "HS-CONF-013"
    }
    assert problems(plan(path, "--address", "http://127.0.0.1:1")) == {"access to http://127.0.0.1:1": "HS-RUN-008"}
    file = tmp_path / "file"
    file.touch()
    assert problems(plan(path, "--set", f"root={file}")) == {f"storage {file}": "HS-STOR-006"}


def test_checks__of_a_pipeline_are_those_of_what_its_stages_do_not_make(root: LocalStore, tmp_path: Path) -> None:
    write_recipe(tmp_path / "train.yaml", root.url)
    judge = {"kind": "evaluate", "name": "x", "bank": "tiny", "queries": "others"}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(judge))
    stages = [
        {"name": "train", "recipe": "train.yaml"},
        {"name": "judge", "recipe": "judge.yaml", "from": "train.last"},
    ]
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"kind": "pipeline", "name": "p", "root": root.url, "stages": stages}))
    told = plan(path)
    assert problems(told) == {"judge: dataset others": "HS-DATA-003"}
    assert [stage["run"] for stage in told["stages"]] == ["p-train"]
    assert {write["place"] for write in told["writes"]} >= {"pipelines/p", "runs/p-train/checkpoints"}
    with pytest.raises(DatasetNotFoundError):
        raise_first(checks(load_recipe(path, [], {})))


def test_plan__in_words_says_whether_submit_would_take_it(root: LocalStore, tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path / "r.yaml", root.url))
    said = CliRunner().invoke(app, ["plan", path, "--config"])
    assert said.exit_code == 0
    assert said.stdout.strip().endswith("submit would take it")
    assert "training.steps" in said.stdout
    said = CliRunner().invoke(app, ["plan", path, "--set", "dataset.name=nothing"])
    assert said.stdout.strip().endswith("submit would fail on 1 of these")
