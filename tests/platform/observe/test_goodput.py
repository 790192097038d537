import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_runs import at, simulated_run

from heliostat.observe.attempts import seconds_of
from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import ledger, thinned
from heliostat.observe.metrics import PHASES, StepMetrics
from heliostat.observe.spans import Category
from heliostat.observe.timeline import timeline

T = EventType
BEGIN_S = 1_800_000_000


def event(kind: str, seconds: float, attempt: int = 1, **fields: object) -> Event:
    return Event(at(seconds), kind, attempt, None, fields)


def step(step: int, ends_s: float, attempt: int = 1, **seconds: float) -> StepMetrics:
    return StepMetrics(step, attempt, at(ends_s), {}, seconds)


def spent(metrics: list[StepMetrics], events: list[Event], now_s: float | None = None) -> dict[str, float]:
    """Seconds of the categories that have any."""
    found = ledger(metrics, events, None if now_s is None else BEGIN_S + now_s)
    return {str(category): round(seconds, 3) for category, seconds in found.seconds.items() if seconds}


TABLE: dict[str, tuple[list[StepMetrics], list[Event], float | None, dict[str, float]]] = {
    "nothing": ([], [], None, {}),
    "a run of one process, without a driver": (
        [step(0, 12, student_s=2, data_wait_s=2), step(1, 18, student_s=4, checkpoint_s=1, evaluation_s=1)],
        [event(T.ATTEMPT_STARTED, 0), event(T.DATA_READY, 9, step=0), event(T.RUN_FINISHED, 20, step=2)],
        None,
        {"start": 9, "data_wait": 1, "productive": 6, "checkpoint": 3, "evaluation": 1},
    ),
    "no events at all": ([step(0, 12, student_s=2), step(1, 15, student_s=3)], [], None, {"productive": 5}),
    "a new driver, hours later": (
        [step(0, 5), step(1, 7), step(1, 110, attempt=2)],
        [
            event(T.ATTEMPT_STARTED, 0),
            event(T.DATA_READY, 4, step=0),
            event(T.ATTEMPT_STARTED, 100, attempt=2),
            event(T.DATA_READY, 104, attempt=2, step=1),
        ],
        None,
        {"start": 4, "productive": 1 + 6, "lost_work": 2, "down": 93, "recovery": 4},
    ),
    "an attempt without a step": (
        [],
        [event(T.ATTEMPT_STARTED, 0), event(T.ATTEMPT_ENDED, 7, cause="no images"), event(T.ATTEMPT_STARTED, 9, 2)],
        10,
        {"start": 7, "down": 2, "recovery": 1},
    ),
    "workers that could not be started": (
        [],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.WORKERS_STARTING, 1, attempt=0),
            event(T.INTERRUPTED, 5, attempt=0, cause="start_failed"),
            event(T.WORKERS_STARTING, 6, attempt=0),
            event(T.GAVE_UP, 9, attempt=0),
            event(T.SUPERVISION_ENDED, 10, attempt=0),
        ],
        None,
        {"start": 5, "recovery": 4, "other": 1},
    ),
    "waiting for capacity, up to now": (
        [step(0, 6)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.ATTEMPT_STARTED, 2),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 7, cause="node_lost", step=1),
            event(T.CAPACITY_AWAITED, 8, usable=0, needed=1),
            event(T.CAPACITY_AWAITED, 15, usable=1, needed=2),
        ],
        20,
        {"start": 4, "productive": 2, "lost_work": 1, "recovery": 1, "capacity_wait": 12},
    ),
    "an attempt that resumed and failed does not decide what is lost": (
        [step(0, 6), step(1, 8), step(2, 20, attempt=3)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 8, step=2),
            event(T.RESUMED, 10, attempt=2, step=0),
            event(T.INTERRUPTED, 12, attempt=2),
            event(T.RESUMED, 15, attempt=3, step=2),
            event(T.DATA_READY, 16, attempt=3, step=2),
        ],
        None,
        {"start": 4, "productive": 4 + 4, "recovery": 8},
    ),
    "a line of four steps, two of them lost, and steps without a line": (
        [step(3, 16), step(3, 40, attempt=2)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 24, step=6, cause="node_lost"),
            event(T.DATA_READY, 34, attempt=2, step=2),
        ],
        None,
        {"start": 4, "productive": 6 + 6, "lost_work": 6 + 8, "recovery": 10},
    ),
    "the driver's clock is two seconds behind": (
        [step(0, 6), step(1, 8)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 6.5, step=2),
            event(T.CAPACITY_AWAITED, 9),
        ],
        10,
        {"start": 4, "productive": 4, "recovery": 1, "capacity_wait": 1},
    ),
    "the driver waits for capacity before the last line is there, by its clock": (
        [step(0, 6), step(1, 8)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 6.5, step=2),
            event(T.CAPACITY_AWAITED, 7),
        ],
        10,
        {"start": 4, "productive": 3, "capacity_wait": 3},
    ),
    "an attempt ends under a driver, which sees it later": (
        [step(0, 6)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.ATTEMPT_ENDED, 8, cause="connection lost"),
            event(T.INTERRUPTED, 10, step=1, cause="node_lost"),
            event(T.WORKERS_STARTING, 11),
        ],
        12,
        {"start": 4, "productive": 2, "lost_work": 2, "recovery": 4},
    ),
    "workers outlive their driver": (
        [step(0, 6), step(1, 12), step(1, 18, attempt=2)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.SUPERVISION_STARTED, 10),
            event(T.DATA_READY, 15, attempt=2, step=1),
        ],
        None,
        {"start": 4, "productive": 2 + 3, "down": 4, "recovery": 5},
    ),
    "a planned end that came too late": (
        [step(0, 6), step(1, 8)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.RESIZE_PLANNED, 7, workers=1),
            event(T.INTERRUPTED, 10, step=2, cause="preempted"),
            event(T.RESUMED, 14, attempt=2, step=1),
        ],
        15,
        {"start": 4, "productive": 2, "lost_work": 2 + 2, "recovery": 5},
    ),
    "the next attempt tells of a step without a line": (
        [step(0, 6)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.INTERRUPTED, 9, cause="node_lost"),
            event(T.DATA_READY, 14, attempt=2, step=2),
        ],
        None,
        {"start": 4, "productive": 2 + 2, "lost_work": 1, "recovery": 5},
    ),
    "what a dead attempt still writes is no work": (
        [step(0, 6), step(1, 14), step(1, 20, attempt=2)],
        [
            event(T.SUPERVISION_STARTED, 0, attempt=0),
            event(T.DATA_READY, 4, step=0),
            event(T.ATTEMPT_STARTED, 10, attempt=2),
            event(T.DATA_READY, 17, attempt=2, step=1),
        ],
        None,
        {"start": 4, "productive": 2 + 3, "lost_work": 4, "recovery": 7},
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_ledger__table(case: str) -> None:
    metrics, events, now_s, expected = TABLE[case]
    assert spent(metrics, events, now_s) == expected
    assert spent([*metrics[::-1], *metrics], [*events[::-1], *events], now_s) == expected


def test_ledger__goodput_leaves_out_the_time_without_a_driver() -> None:
    metrics, events, now_s, _ = TABLE["a new driver, hours later"]
    found = ledger(metrics, events, now_s)
    assert found.wall_s == pytest.approx(110)
    assert found.goodput == pytest.approx(7 / 17)
    assert ledger([], []).goodput is None


@pytest.mark.parametrize("seed", range(200))
def test_ledger__recovers_every_second_of_a_simulated_run(seed: int) -> None:
    run = simulated_run(seed)
    expected = Counter(run.spent)
    found = ledger(run.lines, run.events).seconds
    assert {category: found[category] for category in Category} == pytest.approx(
        {category: expected[category] for category in Category}, abs=1e-3
    )


@pytest.mark.parametrize("skew_s", [-0.4, 0.4])
@pytest.mark.parametrize("seed", range(50))
def test_ledger__clocks_that_differ_move_only_the_borders(seed: int, skew_s: float) -> None:
    run = simulated_run(seed)
    of_the_driver = {kind for kind in T if kind.startswith(("supervision", "capacity", "workers_starting", "inter"))}
    events = [
        replace(each, time_utc=at(seconds_of(each.time_utc) - BEGIN_S + skew_s)) if each.type in of_the_driver else each
        for each in run.events
    ]
    expected = Counter(run.spent)
    found = ledger(run.lines, events).seconds
    borders = sum(each.type in of_the_driver for each in events)
    assert sum(abs(found[each] - expected[each]) for each in Category) <= 2 * abs(skew_s) * borders + 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_ledger__of_a_simulated_run_is_whole_at_any_time(seed: int) -> None:
    run = simulated_run(seed)
    ended_s = next(i for i in range(len(run.spent), 0, -1) if run.spent[i - 1] != Category.DOWN)
    for now_s in range(1, ended_s):
        lines = [line for line in run.lines if line.time_utc <= at(now_s)]
        events = [each for each in run.events if each.time_utc <= at(now_s)]
        found = ledger(lines, events, BEGIN_S + now_s)
        assert found.wall_s == pytest.approx(now_s, abs=1e-3)
        assert min(found.seconds.values()) >= 0


lines = st.builds(
    step,
    st.integers(0, 9),
    st.floats(0, 100),
    st.integers(0, 3),
    **{name: st.floats(0, 50) for name in PHASES},
)
events = st.builds(
    event,
    st.sampled_from([*EventType, "of_a_newer_version"]),
    st.floats(0, 100),
    st.integers(0, 3),
    step=st.none() | st.integers(0, 9) | st.just("7"),
    workers=st.integers(1, 4),
    cause=st.sampled_from(["resize", "preempted", "node_lost", "completed"]),
)


@given(st.lists(lines, max_size=12), st.lists(events, max_size=16), st.none() | st.floats(0, 200), st.randoms())
def test_ledger__whatever_the_input_each_second_is_in_one_category(
    metrics: list[StepMetrics], events: list[Event], now_s: float | None, draw: random.Random
) -> None:
    now_s = None if now_s is None else BEGIN_S + now_s
    spans = timeline(metrics, events, now_s)
    assert all(span.seconds > 0 for span in spans)
    assert all(before.end_s == after.begin_s for before, after in pairwise(spans))
    found = ledger(metrics, events, now_s)
    assert list(found.seconds) == list(Category)
    assert min(found.seconds.values()) >= 0
    assert found.wall_s == pytest.approx(spans[-1].end_s - spans[0].begin_s if spans else 0, abs=1e-6)
    again = ledger(
        draw.sample([*metrics, *metrics], 2 * len(metrics)), draw.sample([*events, *events], 2 * len(events)), now_s
    )
    assert again.seconds == pytest.approx(found.seconds, abs=1e-6)


def test_thinned__fewer_lines_and_the_same_ledger() -> None:
    events = [
        event(T.SUPERVISION_STARTED, 0, 0),
        event(T.DATA_READY, 4, step=0),
        event(T.DATA_READY, 2100, 2, step=500),
    ]
    metrics = [
        *(step(number, 6 + 2 * number, data_wait_s=0.5, student_s=1.5) for number in range(1000)),
        *(step(500 + number, 2103 + 3 * number, 2, student_s=3) for number in range(600)),
    ]
    few = thinned(metrics, 100)
    assert len(few) <= 102
    assert ledger(few, events).seconds == pytest.approx(ledger(metrics, events).seconds, abs=0.1)
    assert thinned(metrics[:100], 100) == metrics[:100]


def test_thinned__thinning_again_keeps_the_seconds() -> None:
    metrics = [step(number, number, student_s=1) for number in range(64)]
    twice = thinned(thinned(metrics, 16), 4)
    assert [(line.step, line.seconds["student_s"]) for line in twice] == [(15, 16), (31, 16), (47, 16), (63, 16)]
    assert replace(twice[-1], values={}) == twice[-1]
