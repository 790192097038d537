from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import SHARES, time_shares, wall_clock_s
from heliostat.observe.metrics import PHASES, StepMetrics


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_800_000_000 + seconds, UTC).isoformat()


def event(kind: EventType, seconds: float, attempt: int = 1) -> Event:
    return Event(at(seconds), kind, attempt, None, {})


def step(step: int, ends_s: float, attempt: int = 1, **seconds: float) -> StepMetrics:
    return StepMetrics(step, attempt, at(ends_s), {}, seconds)


def test_time_shares__phases_start_up_and_rest() -> None:
    events = [event(EventType.ATTEMPT_STARTED, 0), event(EventType.RUN_FINISHED, 20)]
    metrics = [step(0, 12, data_wait_s=1, student_s=3), step(1, 18, student_s=4, checkpoint_s=1)]
    shares = time_shares(metrics, events, wall_clock_s(events))
    spent = {name: seconds for name, seconds in shares.items() if seconds}
    assert spent == pytest.approx({"data_wait": 1, "student": 7, "checkpoint": 1, "start_up": 8, "other": 3})


def test_time_shares__work_of_a_lost_attempt_is_named() -> None:
    events = [event(EventType.ATTEMPT_STARTED, 0), event(EventType.ATTEMPT_STARTED, 10, attempt=2)]
    metrics = [step(0, 4, student_s=2), step(1, 6, student_s=2), step(1, 15, attempt=2, student_s=3)]
    shares = time_shares(metrics, events, 15)
    assert shares["recomputed"] == 2
    assert shares["student"] == 5
    assert shares["start_up"] == pytest.approx(2 + 2)


def test_time_shares__an_attempt_without_a_step_was_all_start_up() -> None:
    events = [event(EventType.ATTEMPT_STARTED, 0), event(EventType.ATTEMPT_ENDED, 7)]
    assert time_shares([], events, 7)["start_up"] == pytest.approx(7)


def test_wall_clock_s__is_zero_without_events() -> None:
    assert wall_clock_s([]) == 0


phases = st.dictionaries(st.sampled_from(sorted(PHASES)), st.floats(0, 1e4))
metrics_lines = st.builds(
    lambda number, attempt, ends_s, seconds: step(number, ends_s, attempt, **seconds),
    st.integers(0, 9),
    st.integers(1, 3),
    st.floats(0, 1e5),
    phases,
)
event_lines = st.builds(event, st.sampled_from(EventType), st.floats(0, 1e5), st.integers(1, 3))


@given(st.lists(metrics_lines, max_size=12), st.lists(event_lines, max_size=6), st.floats(0, 1e6))
def test_time_shares__are_not_negative_and_sum_to_the_wall_clock(
    metrics: list[StepMetrics], events: list[Event], wall_s: float
) -> None:
    shares = time_shares(metrics, events, wall_s)
    assert list(shares) == list(SHARES)
    assert all(seconds >= 0 for seconds in shares.values())
    assert sum(shares.values()) == pytest.approx(wall_s)
