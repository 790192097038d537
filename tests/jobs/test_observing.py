"""What a whole run on Ray tells of itself."""

import json
import sys
from pathlib import Path

import pytest
from support.projects import heliostat, store_images, write_recipe

from heliostat.checkpoint.log import CommitLog, live_checkpoints
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import PHASES, merged_curve, read_metrics
from heliostat.storage import open_store
from heliostat.storage.layout import run_store
from heliostat_jobs.cli import app

STEPS = 4


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run__trackers_profile_phases_and_speed_in_deterministic_mode(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = open_store(str(tmp_path / "root"))
    store_images(root)
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS, deterministic=True)
    chosen = [
        *("observe.trackers=[tensorboard]", "observe.profile_steps=[1, 3]", "scaling.workers=2"),
        *("observe.knn.every_steps=2", "observe.knn.bank=tiny", "observe.knn.queries=tiny"),
        *("checkpoint.keep_best=knn_top1", "checkpoint.keep_best_mode=max"),
    ]
    heliostat("run", str(recipe), *(word for each in chosen for word in ("--set", each)))

    run = run_store(root, "tiny")
    curve = merged_curve(read_metrics(run))
    assert [line.step for line in curve] == list(range(STEPS))
    assert {name for line in curve for name in line.seconds} == set(PHASES)
    assert all(0 < (line.values["mfu"] or 0) < 1 and (line.values["memory_peak_mib"] or 0) > 50 for line in curve)
    assert EventType.TRACKER_FAILED not in {event.type for event in read_events(run)}
    board = EventAccumulator(f"{run.url}/logs/tensorboard")
    board.Reload()
    losses = [line.values["loss"] for line in curve]
    assert [point.value for point in board.Scalars("loss")] == pytest.approx(losses)
    judged = {line.step: line.values["knn_top1"] for line in curve if "knn_top1" in line.values}
    assert set(judged) == {1, 3}
    assert [entry.metrics["knn_top1"] for entry in live_checkpoints(CommitLog(run).read())][-1] == judged[3]
    evaluation = tmp_path / "evaluate.yaml"
    evaluation.write_text(f"kind: evaluate\nname: knn\nroot: {root.url}\nrun: tiny\nbank: tiny\nqueries: tiny\n")
    later = heliostat("run", str(evaluation), "--set", "knn.neighbours=[20]")
    assert later["knn"]["trained"]["20"]["top1"] == judged[3]
    assert "traceEvents" in json.loads(run.get("logs/profile-0001-1-3.json"))
    assert b"Self CPU" in run.get("logs/profile-0001-1-3.txt")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The error of a command that is a usage error."""
    with pytest.raises(SystemExit) as end:
        app([*arguments, "--json"])
    assert end.value.code == 2
    error: dict[str, str] = json.loads(capsys.readouterr().out)["error"]
    return error


def test_run__an_online_evaluation_without_datasets_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", str(tmp_path / "root"), steps=STEPS)
    error = refused(capsys, "run", str(recipe), "--set", "observe.knn.every_steps=2")
    assert "observe.knn.bank names no dataset" in error["message"]


def test_run__a_tracker_that_is_not_installed_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", str(tmp_path / "root"), steps=STEPS)
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refused(capsys, "run", str(recipe), "--set", "observe.trackers=[wandb]")
    assert error["code"] == "HS-CONF-009"
    assert "wandb" in error["message"]
    assert "heliostat[trackers]" in error["next_step"]
    assert not (tmp_path / "root").exists()
