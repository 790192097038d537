from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.observe.segments import Line
from heliostat.observe.status import RunStatus, after_event, after_lines, after_metrics, duration, eta_s, run_line


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_800_000_000 + seconds, UTC).isoformat()


def metrics(step: int, seconds: float, attempt: int = 1, **values: float) -> Line:
    return {"time_utc": at(seconds), "attempt": attempt, "step": step, **values}


def event(kind: str, seconds: float = 0, attempt: int = 1, **fields: object) -> Line:
    return {"time_utc": at(seconds), "type": kind, "attempt": attempt, **fields}


@pytest.mark.parametrize(
    ("recent", "total", "expected"),
    [
        ([], 10, None),
        ([(0.0, 3)], 10, None),  # one observation is no rate
        ([(0.0, 2), (4.0, 4)], 10, 12.0),
        ([(0.0, 2), (4.0, 10)], 10, 0.0),
        ([(5.0, 2), (5.0, 4)], 10, None),  # a clock too coarse
        ([(5.0, 2), (4.0, 4)], 10, None),  # a clock set back
        ([(0.0, 4), (4.0, 4)], 10, None),
    ],
)
def test_eta_s__table(recent: list[tuple[float, int]], total: int, expected: float | None) -> None:
    assert eta_s(recent, total) == expected


@given(st.floats(0.01, 100), st.integers(1, 500), st.integers(2, 500))
def test_eta_s__is_exact_at_a_steady_rate(step_s: float, done: int, left: int) -> None:
    recent = [(0.0, 0), (done * step_s, done)]
    assert eta_s(recent, done + left) == pytest.approx(left * step_s)


def test_after_lines__a_run_from_start_to_finish() -> None:
    status = RunStatus(total_steps=3)
    assert run_line(status) == "waiting for workers: step 0/3"
    status = after_lines(status, [event("attempt_started", 0, workers=2)], [])
    assert run_line(status) == "starting workers: step 0/3 · 2 workers"
    status = after_lines(status, [], [metrics(0, 10, loss=9.5, images_per_s=1234.0), metrics(1, 12, loss=9.25)])
    assert run_line(status) == "training: step 2/3 · loss 9.250 · 2 workers · ETA 2 s"
    status = after_lines(status, [event("run_finished", 15)], [metrics(2, 14, loss=9.0)])
    assert run_line(status) == "finished: step 3/3 · loss 9.000 · 2 workers"


def test_after_lines__old_lines_of_a_resumed_run_do_not_set_the_pace() -> None:
    before = [metrics(step, 1000 * step, loss=9.0) for step in range(5)]
    resumed = [event("attempt_started", 10_000, attempt=2, workers=3), event("resumed", 10_001, attempt=2, step=3)]
    status = after_lines(RunStatus(total_steps=10), resumed, before)
    assert (status.phase, status.eta_s, status.attempt) == ("resuming", None, 2)
    status = after_lines(status, [], [metrics(3, 10_010, attempt=2), metrics(4, 10_012, attempt=2)])
    assert status.eta_s == 10
    assert "attempt 2" in run_line(status)


def test_after_metrics__lines_of_an_older_attempt_change_nothing() -> None:
    status = after_metrics(RunStatus(total_steps=10), metrics(7, 5, attempt=2))
    assert after_metrics(status, metrics(9, 6, attempt=1)) == status


def test_after_event__unknown_types_change_nothing() -> None:
    status = RunStatus(total_steps=10)
    assert after_event(status, event("sun_rose")) == status


@pytest.mark.parametrize(("seconds", "text"), [(8.6, "9 s"), (187, "3:07 min"), (7530, "2:05 h"), (3599.9, "1:00 h")])
def test_duration__table(seconds: float, text: str) -> None:
    assert duration(seconds) == text
