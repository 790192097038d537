from dataclasses import replace
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


def test_after_lines__an_elastic_run_from_interruption_to_interruption() -> None:
    status = RunStatus(total_steps=10)
    begin = [
        event("supervision_started", 0, 0, min_workers=1, max_workers=4),
        event("workers_starting", 1, 0, workers=4),
    ]
    status = after_lines(status, begin, [])
    assert run_line(status) == "starting workers: step 0/10 · 4 workers"
    status = after_lines(status, [event("preemption_noticed", 9)], [metrics(0, 8), metrics(1, 10)])
    assert (status.phase, status.preemption_notices) == ("training", 1)
    status = after_lines(status, [event("resize_planned", 10.5, workers=3, reason="preemption")], [metrics(2, 11)])
    assert run_line(status).startswith("resizing to 3 workers: step 3/10 · 4 workers")
    status = after_lines(status, [event("interrupted", 12, cause="preempted", step=3)], [])
    assert run_line(status) == "recovering: step 3/10 · 0/4 workers · 1 interruption · ETA 10 s"
    status = after_lines(status, [event("capacity_awaited", 13, usable=0, needed=1)], [])
    assert run_line(status).startswith("waiting for capacity: step 3/10 · 0/4 workers")
    again = [event("workers_starting", 20, workers=3), event("attempt_started", 22, 2, workers=3)]
    status = after_lines(status, again, [metrics(3, 30, attempt=2)])
    assert run_line(status) == "training: step 4/10 · 3/4 workers · 1 interruption"
    status = after_lines(status, [event("interrupted", 31, 2, cause="node_lost", step=4)], [])
    assert status.interruptions == {"preempted": 1, "node_lost": 1}
    assert run_line(replace(status, goodput=0.874)).endswith("2 interruptions · goodput 87%")


def test_after_event__a_new_driver_of_an_old_run_is_heard() -> None:
    status = after_metrics(RunStatus(total_steps=10), metrics(4, 5, attempt=3))
    status = after_event(status, event("supervision_started", 100, 0, max_workers=2))
    assert (status.phase, status.attempt, status.wanted_workers) == ("waiting for workers", 3, 2)
    late = after_event(status, event("interrupted", 101, 2, cause="hang"))
    assert late.phase == status.phase, "an older attempt says nothing about now"
    assert late.interruptions == {"hang": 1}


@pytest.mark.parametrize("last", ["run_finished", "gave_up"])
def test_after_event__what_ends_after_the_run_adds_nothing(last: str) -> None:
    status = after_event(RunStatus(total_steps=10), event(last))
    for kind in ("attempt_ended", "supervision_ended"):
        assert after_event(status, event(kind)).phase == status.phase


def test_after_metrics__lines_of_an_older_attempt_change_nothing() -> None:
    status = after_metrics(RunStatus(total_steps=10), metrics(7, 5, attempt=2))
    assert after_metrics(status, metrics(9, 6, attempt=1)) == status


def test_after_event__unknown_types_change_nothing() -> None:
    status = RunStatus(total_steps=10)
    assert after_event(status, event("sun_rose")) == status


@pytest.mark.parametrize(("seconds", "text"), [(8.6, "9 s"), (187, "3:07 min"), (7530, "2:05 h"), (3599.9, "1:00 h")])
def test_duration__table(seconds: float, text: str) -> None:
    assert duration(seconds) == text
