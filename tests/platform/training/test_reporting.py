from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.worlds import CPU_DEVICE, new_networks, step_input, tiny_recipe

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.learner import SkippedStep
from heliostat.objectives.step import TrainingStep
from heliostat.objectives.step_state import StepResult
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import PHASES, read_metrics
from heliostat.storage import open_store
from heliostat.training.feed import slot_batch
from heliostat.training.reporting import Reporter


def observed(**observe: Any) -> PretrainRecipe:
    tree = tiny_recipe().model_dump()
    return PretrainRecipe.model_validate({**tree, "observe": {**tree["observe"], **observe}})


def report(recipe: PretrainRecipe, root: Path, steps: range, rank: int = 0, skipped: int | None = None) -> None:
    """What the loop of an attempt does with its reporter."""
    plan = SlotPlan(recipe.training.slots, 1)
    with ExitStack() as stack:
        reporter = Reporter(recipe, open_store(str(root)), 1, rank, plan, CPU_DEVICE, stack, 1e6)
        student, teacher = new_networks(recipe)
        training = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher, reporter.clock.phase)
        for step in steps:
            with reporter.clock.phase("data_wait_s"):
                prepared = step_input(recipe, plan, 0, step)
            result = training.run(step, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots])
            if step == skipped:
                result = StepResult(result.terms, result.gradient_norms, result.values, SkippedStep("nan", ("a",)))
            reporter.step(step, prepared, result)


def test_reporter__a_line_has_phases_speed_and_memory(tmp_path: Path) -> None:
    report(observed(log_every_steps=2), tmp_path, range(4))
    lines = read_metrics(open_store(str(tmp_path)))
    assert [line.step for line in lines] == [1, 3]
    for line in lines:
        assert set(line.seconds) == set(PHASES) - {"checkpoint_s", "evaluation_s"}
        assert 0 < (line.values["mfu"] or 0) < 1
        assert line.values["flops_per_image"] == 1e6
        assert (line.values["memory_peak_mib"] or 0) > 50
        assert line.values["images_per_s"] == pytest.approx(2 * 16 / sum(line.seconds.values()))


def test_reporter__only_the_first_worker_writes_metrics(tmp_path: Path) -> None:
    report(observed(), tmp_path, range(2), rank=1)
    assert read_metrics(open_store(str(tmp_path))) == []


def test_reporter__a_step_left_out_is_an_event_and_no_line(tmp_path: Path) -> None:
    report(observed(), tmp_path, range(3), skipped=1)
    store = open_store(str(tmp_path))
    assert [line.step for line in read_metrics(store)] == [0, 2]
    (event,) = read_events(store)
    assert (event.type, event.fields["step"]) == (EventType.STEP_SKIPPED, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reporter__trackers_get_the_lines_and_one_that_fails_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://nowhere")
    report(observed(trackers=["tensorboard", "mlflow"]), tmp_path, range(2))
    store = open_store(str(tmp_path))
    board = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    board.Reload()
    kept = [line.values["loss"] for line in read_metrics(store)]
    assert [point.value for point in board.Scalars("loss")] == pytest.approx(kept)
    (event,) = read_events(store)
    assert (event.type, event.fields["tracker"]) == (EventType.TRACKER_FAILED, "mlflow")
    assert "no-such-scheme" in event.fields["reason"]
