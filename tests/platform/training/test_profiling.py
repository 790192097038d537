import json
import logging
from pathlib import Path

import pytest
import torch

from heliostat.elastic.signals import MAILBOX, pulse
from heliostat.storage import open_store
from heliostat.training.profiling import StepProfiler


def train(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        with profiler.step(step), torch.profiler.record_function(f"step-{step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close()


def profiled_steps(root: Path, name: str) -> set[str]:
    events = json.loads((root / f"{name}.json").read_text())["traceEvents"]
    return {event["name"] for event in events if str(event.get("name")).startswith("step-")}


def test_profiler__writes_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    train(StepProfiler((2, 4), open_store(str(tmp_path)), attempt=1), range(6))
    assert profiled_steps(tmp_path, "logs/profile-0001-2-4") == {"step-2", "step-3"}
    assert "aten::mm" in (tmp_path / "logs/profile-0001-2-4.txt").read_text()


def test_profiler__an_attempt_that_begins_in_between_profiles_the_rest(tmp_path: Path) -> None:
    train(StepProfiler((2, 6), open_store(str(tmp_path)), attempt=2), range(4, 8))
    assert profiled_steps(tmp_path, "logs/profile-0002-4-6") == {"step-4", "step-5"}


def test_profiler__a_run_that_ends_in_between_writes_what_it_has(tmp_path: Path) -> None:
    train(StepProfiler((2, 100), open_store(str(tmp_path)), attempt=1), range(4))
    assert profiled_steps(tmp_path, "logs/profile-0001-2-100") == {"step-2", "step-3"}


@pytest.mark.parametrize("steps", [None, (10, 12)])
def test_profiler__otherwise_writes_nothing(steps: tuple[int, int] | None, tmp_path: Path) -> None:
    train(StepProfiler(steps, open_store(str(tmp_path)), attempt=1), range(4))
    assert not list(tmp_path.rglob("*"))


def test_profiler__a_store_that_fails_costs_the_profile_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        train(StepProfiler((1, 2), open_store(str(tmp_path)), attempt=1), range(3))
    assert "the profile of steps 1 to 2 is lost" in caplog.text


def test_profiler__that_writes_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAILBOX, "has_trained", True)
    profiler = StepProfiler((0, 2), open_store(str(tmp_path)), attempt=1)
    with profiler.step(0):
        pass
    assert pulse().has_trained
    with profiler.step(1):
        pass
    assert not pulse().has_trained
