"""A run without Ray and DeepSpeed, and one that begins so and goes on with both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.projects import heliostat, write_images, write_recipe
from support.whole_runs import assert_run_equals_plain_training

from heliostat.checkpoint.log import CheckpointEntry, CommitLog
from heliostat.observe.events import EventType, read_events
from heliostat.storage import open_store
from heliostat.training.attempt import run_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS = 12
FIRST_STEPS = """
import json, sys
from heliostat.config import load_recipe
from heliostat.training.attempt import RunSpec
from heliostat.training.single_process import single_process_run
from heliostat_jobs.runs import open_run
run = open_run(resolved := load_recipe(sys.argv[1], [], {}))
losses = []
with single_process_run(RunSpec(resolved.recipe, run.root, run.manifests)) as worker:
    for step, result in worker.steps():
        losses.append(result.terms["loss"])
        if step == 5:
            break
print(json.dumps([losses, sorted({"ray", "deepspeed"} & set(sys.modules))]))
"""


def test_single_process__begins_what_deepspeed_goes_on_with(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    root = open_store(str(tmp_path / "root"))
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS)
    heliostat("dataset", "ingest", str(images), f"{root.url}/tiny")

    begun = subprocess.run(
        [sys.executable, "-c", FIRST_STEPS, str(recipe)], stdout=subprocess.PIPE, text=True, check=True
    )
    losses, loaded = json.loads(begun.stdout)
    assert len(losses) == 6
    assert loaded == []
    run = run_store(root, "tiny")
    assert any(isinstance(entry, CheckpointEntry) for entry in CommitLog(run).read())
    (end,) = [event for event in read_events(run) if event.type == EventType.ATTEMPT_ENDED]
    assert end.fields["cause"] == "left before its end"

    heliostat("run", str(recipe), "--set", "scaling.workers=2", "--set", "training.zero_stage=3")
    assert any(event.type == EventType.RESUMED for event in read_events(run))
    assert_run_equals_plain_training(root, "tiny")


def test_run__single_process_is_the_same_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    root = open_store(str(tmp_path / "root"))
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS)
    heliostat("dataset", "ingest", str(images), f"{root.url}/tiny")
    result = heliostat("run", str(recipe), "--single-process")
    assert result["steps"] == STEPS
    assert_run_equals_plain_training(root, "tiny")
