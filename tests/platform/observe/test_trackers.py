"""Trackers with their real libraries, and with planted ones that fail."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from heliostat.observe.trackers import TRACKERS, BackgroundTracker, TrackedRun
from heliostat.observe.trackers.mlflow import MlflowTracker
from heliostat.observe.trackers.tensorboard import TensorBoardTracker
from heliostat.observe.trackers.tracker import Tracker
from heliostat.observe.trackers.wandb import WandbTracker

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
CONFIG: dict[str, object] = {"training.steps": 20, "model.arch": "vit_s"}


def tracked(folder: Path) -> TrackedRun:
    return TrackedRun("my-run", "s3://bucket/runs/my-run", CONFIG, folder / "board")


def attempt(tracker: Tracker, run: TrackedRun, steps: range, loss: Callable[[int], float]) -> None:
    """What one attempt of a run logs, through the thread."""
    failures: list[tuple[str, str]] = []
    with BackgroundTracker("it", tracker, run, lambda *failure: failures.append(failure), patience_s=60) as background:
        for step in steps:
            background.log(step, {"loss": loss(step), "lr": 0.1, "odd": float("nan"), "word": "no number"})
    assert failures == []
    assert background.dropped == 0


def test_tracked_run__has_one_id_for_ever(tmp_path: Path) -> None:
    run = tracked(tmp_path)
    assert run.id == tracked(tmp_path / "elsewhere").id
    assert run.id != TrackedRun("my-run", "s3://other/runs/my-run", CONFIG, None).id
    assert run.id.startswith("my-run-")


def test_tensorboard__a_resume_goes_on_and_replaces_what_it_computes_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked(tmp_path)
    attempt(TensorBoardTracker(), run, range(4), float)
    time.sleep(1.1)  # files are read in the order of the seconds in their names
    attempt(TensorBoardTracker(), run, range(2, 6), lambda step: 10.0 * step)
    board = EventAccumulator(str(run.folder))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [
        (0, 0.0), (1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0), (5, 50.0),
    ]  # fmt: skip
    assert set(board.Tags()["scalars"]) == {"loss", "lr"}
    assert b"vit_s" in board.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow__a_resume_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    run = tracked(tmp_path)
    attempt(MlflowTracker(), run, range(4), float)
    attempt(MlflowTracker(), run, range(4, 6), float)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("heliostat")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "my-run"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"training.steps": "20", "model.arch": "vit_s"}
    history = client.get_metric_history(found.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(step, float(step)) for step in range(6)]


def test_wandb__writes_an_offline_run_under_the_stable_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tracked(tmp_path)
    attempt(WandbTracker(), run, range(3), float)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert written.name == f"run-{run.id}.wandb"
    deadline_s = time.monotonic() + 30
    while b"loss" not in written.read_bytes() and time.monotonic() < deadline_s:
        time.sleep(0.1)  # a service of its own writes the file
    assert b"loss" in written.read_bytes()
    assert b"training.steps" in written.read_bytes()


class Recording:
    """A tracker that takes what it is given; ``fault`` is called first."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self.fault = fault
        self.steps: list[int] = []

    def start(self, run: TrackedRun) -> None:
        self.fault("start")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.fault(f"log {step}")
        self.steps.append(step)

    def close(self) -> None:
        self.fault("close")


def raising(where: str) -> Callable[[str], None]:
    def fault(called: str) -> None:
        if called == where:
            raise ConnectionError("https://me:secret-password@tracker.example answers 503")

    return fault


@pytest.mark.parametrize(
    ("where", "taken", "dropped"), [("start", [], 4), ("log 1", [0, 2, 3], 1), ("close", [0, 1, 2, 3], 0)]
)
def test_background__a_tracker_that_raises_is_told_of_once(
    where: str, taken: list[int], dropped: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[tuple[str, str]] = []
    tracker = Recording(raising(where))
    with (
        caplog.at_level(logging.WARNING),
        BackgroundTracker("planted", tracker, tracked(tmp_path), lambda *failure: failures.append(failure)) as it,
    ):
        for step in range(4):
            it.log(step, {"loss": 1.0})
    assert tracker.steps == taken
    assert it.dropped == dropped
    assert failures == [("planted", "ConnectionError: https://***@tracker.example answers 503")]
    assert sum("the run goes on without it" in record.getMessage() for record in caplog.records) == 1
    assert "secret-password" not in caplog.text


@pytest.mark.parametrize("where", ["start", "log 0", "close"])
def test_background__a_tracker_that_hangs_costs_no_time(where: str, tmp_path: Path) -> None:
    woken = threading.Event()
    failures: list[tuple[str, str]] = []

    def hang(called: str) -> None:
        if called == where:
            woken.wait(60)

    tracker = Recording(hang)
    it = BackgroundTracker(
        "planted", tracker, tracked(tmp_path), lambda *f: failures.append(f), queued_lines=10, patience_s=0.3
    )
    start_s = time.perf_counter()
    for step in range(100):
        it.log(step, {"loss": 1.0})
        time.sleep(0.001)  # a step of training
    logged_s = time.perf_counter() - start_s
    it.close()
    closed_s = time.perf_counter() - start_s - logged_s
    woken.set()
    assert logged_s < 2
    assert closed_s < 2
    assert len(failures) == 1
    if where != "close":
        assert it.dropped >= 99


def test_trackers__their_names_are_their_packages() -> None:
    assert set(TRACKERS) == {"tensorboard", "mlflow", "wandb"}
