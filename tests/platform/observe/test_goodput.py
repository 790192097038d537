import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_runs import BEGIN_S, at, event, simulated_run, step

from heliostat.observe.attempts import seconds_of
from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import ledger, thinned
from heliostat.observe.metrics import PHASES, StepMetrics
from heliostat.observe.spans import Category
from heliostat.observe.timeline import timeline

T = EventType


def test_ledger__goodput_leaves_out_the_time_without_a_driver() -> None:
    started = [event(T.ATTEMPT_STARTED, 0), event(T.ATTEMPT_STARTED, 100, 2), event(T.DATA_READY, 104, 2, step=1)]
    metrics = [step(0, 5, student_s=1), step(1, 7), step(1, 110, attempt=2)]
    found = ledger(metrics, started)
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
