"""Whole runs by the command line, on Ray and DeepSpeed, against one plain process that reads the dataset itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.projects import CLASSES, command, heliostat, store_images, write_images, write_recipe
from support.small_datasets import store_dataset
from support.whole_runs import assert_run_equals_plain_training
from support.worlds import encoded_images

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, EndEntry, LeaseEntry
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store

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
        if step == 3:
            break
print(json.dumps([losses, sorted({"ray", "deepspeed"} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def killed_ray() -> Iterator[set[int]]:
    """Processes of a Ray whose driver a test killed: none must be left.

    Looked at last, because two of Ray's agents take a minute to notice that the rest of their Ray is gone.
    """
    started: set[int] = set()
    yield started
    deadline = time.monotonic() + 150
    while left := started & set(_all_pids()):
        assert time.monotonic() < deadline, f"processes live on: {left}"
        time.sleep(0.5)


def test_run__begun_alone_killed_with_workers_and_resumed_with_others_equals_one_plain_process(
    tmp_path: Path, killed_ray: set[int]
) -> None:
    root = open_store(str(tmp_path / "root"))
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS)
    store_images(root)
    run = run_store(root, "tiny")

    begun = subprocess.run(
        [sys.executable, "-c", FIRST_STEPS, str(recipe)], stdout=subprocess.PIPE, text=True, check=True
    )
    losses, loaded = json.loads(begun.stdout)
    assert len(losses) == 4
    assert loaded == []
    assert _committed_by(run, attempt=1)
    (end,) = [event for event in read_events(run) if event.type == EventType.ATTEMPT_ENDED]
    assert end.fields["cause"] == "left before its end"

    killed_ray |= _kill_after_first_checkpoint(["run", str(recipe), "--set", "scaling.workers=3"], run, attempt=2)

    result = heliostat("run", str(recipe), "--set", "scaling.workers=2", "--set", "training.zero_stage=3")
    assert result["steps"] == STEPS
    assert not result["was_finished"]
    entries = CommitLog(run).read()
    assert [entry.attempt for entry in entries if isinstance(entry, LeaseEntry)] == [1, 2, 3]
    assert_run_equals_plain_training(root, "tiny")
    events = [event.type for event in read_events(run)]
    assert {EventType.CHECKPOINT_COMMITTED, EventType.RUN_FINISHED} <= set(events)
    assert events.count(EventType.RESUMED) == 2

    again = heliostat("run", str(recipe))
    assert again["was_finished"]
    assert CommitLog(run).read() == entries

    refused = heliostat("run", str(recipe), "--set", "training.base_lr=0.5", expect=2)
    assert refused["error"]["code"] == "HS-CONF-008"
    assert "training.base_lr 0.016 -> 0.5" in refused["error"]["message"]


@pytest.mark.s3
def test_run__a_mix_on_an_object_store_and_its_evaluation(tmp_path: Path, s3_root: str) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", s3_root, steps=8)
    root = open_store(s3_root)
    heliostat("dataset", "ingest", str(write_images(tmp_path / "images")), f"{s3_root}/tiny")
    store_dataset(root, encoded_images()[1::CLASSES], "few")
    settings = [
        "scaling.workers=2",
        "dataset.name=null",
        "dataset.mix=[tiny=0.7, few=0.3]",
        "streaming.crop_processes=2",
        f"streaming.cache_dir={tmp_path / 'cache'}",
    ]
    heliostat("run", str(recipe), *(part for setting in settings for part in ("--set", setting)))
    assert_run_equals_plain_training(root, "tiny")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert list((tmp_path / "cache").glob("*.group"))
    last = merged_curve(read_metrics(run_store(root, "tiny")))[-1].values
    assert {"data_bytes_read", "data_bytes_used", "data_retries"} <= set(last)

    evaluation = tmp_path / "evaluate.yaml"
    evaluation.write_text(f"kind: evaluate\nname: knn\nroot: {s3_root}\nrun: tiny\nbank: tiny\nqueries: tiny\n")
    numbers = heliostat("run", str(evaluation), "--set", "knn.neighbours=[1]")
    # Every query is in the bank and finds itself: a known answer for any backbone that tells images apart.
    assert numbers["knn"]["trained"]["1"]["top1"] == 1.0
    assert root.exists("runs/tiny/reports/knn.json")


def _committed_by(run: Store, attempt: int) -> list[CheckpointEntry]:
    entries = CommitLog(run).read()
    return [entry for entry in entries if isinstance(entry, CheckpointEntry) and entry.attempt == attempt]


def _kill_after_first_checkpoint(arguments: list[str], run: Store, attempt: int) -> set[int]:
    """SIGKILL of the driver as soon as a checkpoint of its attempt is in the log; the processes of its Ray."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        deadline = time.monotonic() + 300
        while not _committed_by(run, attempt):
            assert driver.poll() is None, f"the run ended by itself with {driver.returncode}"
            assert time.monotonic() < deadline, "no checkpoint within 300 s"
            time.sleep(0.02)
        started = set(_session_of(driver.pid))
        driver.send_signal(signal.SIGKILL)
    assert not any(isinstance(entry, EndEntry) for entry in CommitLog(run).read()), "it finished before it was killed"
    return started


def _session_of(pid: int) -> Iterator[int]:
    for other in _all_pids():
        try:
            if os.getsid(other) == pid:
                yield other
        except ProcessLookupError:
            continue


def _all_pids() -> list[int]:
    """Of processes that run; not of zombies, which only wait for their parent."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                pids.append(int(entry.name))
    return pids
