"""Whole runs by the command line, on Ray and DeepSpeed, against one plain process that reads the dataset itself."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.projects import command, heliostat, write_images, write_recipe
from support.whole_runs import assert_run_equals_plain_training

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, EndEntry, LeaseEntry
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store, open_store
from heliostat.training.attempt import run_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS = 12


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_run__killed_midway_and_resumed_with_other_workers_equals_one_plain_process(
    tmp_path: Path, images: Path
) -> None:
    root = open_store(str(tmp_path / "root"))
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS)
    heliostat("dataset", "ingest", str(images), f"{root.url}/tiny")
    run = run_store(root, "tiny")

    started = _kill_after_first_checkpoint(["run", str(recipe), "--set", "scaling.workers=3"], run)

    result = heliostat("run", str(recipe), "--set", "scaling.workers=2")
    assert result["steps"] == STEPS
    assert not result["was_finished"]
    entries = CommitLog(run).read()
    assert [entry.attempt for entry in entries if isinstance(entry, LeaseEntry)] == [1, 2]
    assert_run_equals_plain_training(root, "tiny")
    events = {event.type for event in read_events(run)}
    assert {EventType.RESUMED, EventType.CHECKPOINT_COMMITTED, EventType.RUN_FINISHED} <= events

    again = heliostat("run", str(recipe))
    assert again["was_finished"]
    assert CommitLog(run).read() == entries

    refused = heliostat("run", str(recipe), "--set", "training.base_lr=0.5", expect=2)
    assert refused["error"]["code"] == "HS-CONF-008"
    assert "training.base_lr 0.016 -> 0.5" in refused["error"]["message"]

    # Last, because two of Ray's agents take a minute to notice that the rest of their Ray is gone.
    deadline = time.monotonic() + 150
    while left := started & set(_all_pids()):
        assert time.monotonic() < deadline, f"processes live on: {left}"
        time.sleep(0.5)


@pytest.mark.s3
def test_run__a_mix_on_an_object_store_and_its_evaluation(tmp_path: Path, images: Path, s3_root: str) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", s3_root, steps=8)
    heliostat("dataset", "ingest", str(images), f"{s3_root}/tiny")
    heliostat("dataset", "ingest", str(images / "class-1"), f"{s3_root}/few")
    settings = [
        "scaling.workers=2",
        "dataset.name=null",
        "dataset.mix=[tiny=0.7, few=0.3]",
        "streaming.crop_processes=2",
        f"streaming.cache_dir={tmp_path / 'cache'}",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    refused = heliostat("run", str(recipe), *overrides, "--set", "streaming.crops_on=pool", expect=2)
    assert refused["error"]["code"] == "HS-DATA-010"  # the embedded Ray has no pool of CPU nodes

    heliostat("run", str(recipe), *overrides)
    root = open_store(s3_root)
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


def _kill_after_first_checkpoint(arguments: list[str], run: Store) -> set[int]:
    """SIGKILL of the driver as soon as a checkpoint is in the log; the processes of its Ray."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        deadline = time.monotonic() + 300
        while not any(isinstance(entry, CheckpointEntry) for entry in CommitLog(run).read()):
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
