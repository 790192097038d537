from support.simulated_runs import BEGIN_S, at, event

from heliostat.observe.events import EventType
from heliostat.observe.interruptions import Interruption, interruptions
from heliostat.observe.metrics import StepMetrics

T = EventType


def test_interruptions__what_was_lost_and_how_it_went_on() -> None:
    events = [
        event(T.INTERRUPTED, 20, 2, cause="start_failed", step=5),
        event(T.INTERRUPTED, 10, 1, cause="node_lost", ranks=[1, 3], step=7),
        event(T.RESUMED, 15, 2, step=5, source="memory"),
        event(T.RESUMED, 29, 3, step=4, source="storage"),
        event(T.DATA_READY, 30, 3, step=4),
        event(T.INTERRUPTED, 40, 3, cause="hang"),
    ]
    assert interruptions([], [event(T.DATA_READY, 1, 1, step=0), *events, *events]) == [
        Interruption(BEGIN_S + 10, 1, "node_lost", (1, 3), 7, 3, 20, "storage"),
        Interruption(BEGIN_S + 20, 2, "start_failed", (), 5, 0, 10, "storage"),
        Interruption(BEGIN_S + 40, 3, "hang", (), None, None, None, None),
    ]


def test_interruptions__without_events_the_lines_say_when_it_went_on() -> None:
    metrics = [StepMetrics(1, 1, at(9), {}, {}), StepMetrics(2, 2, at(25), {}, {"student_s": 3.0})]
    (found,) = interruptions(metrics, [event(T.INTERRUPTED, 10, cause="preempted", step=2)])
    assert (found.steps_lost, found.to_next_step_s, found.source) == (0, 12, None)


def test_interruptions__a_run_without_any() -> None:
    assert interruptions([], [event(T.ATTEMPT_STARTED, 0)]) == []


def test_interruptions__a_step_of_which_only_its_line_tells_was_lost_too() -> None:
    metrics = [StepMetrics(step, 1, at(5 + step), {}, {}) for step in range(3)]
    events = [event(T.INTERRUPTED, 10, 1, cause="worker_crash", step=2), event(T.DATA_READY, 12, 2, step=2)]
    (found,) = interruptions(metrics, events)
    assert (found.steps_done, found.steps_lost) == (3, 1)


def test_interruptions__a_start_of_which_no_attempt_comes_loses_nothing_again() -> None:
    events = [
        event(T.DATA_READY, 1, 1, step=0),
        event(T.INTERRUPTED, 10, 1, cause="node_lost", step=7),
        event(T.INTERRUPTED, 20, 1, cause="start_failed", step=7),  # the driver knows of no attempt but the first
        event(T.ATTEMPT_STARTED, 22, 2),
        event(T.INTERRUPTED, 25, 2, cause="node_lost", step=0),  # before it knew where to go on
        event(T.RESUMED, 29, 3, step=4, source="memory"),
        event(T.DATA_READY, 30, 3, step=4),
    ]
    found = interruptions([], [*events, *events])
    assert [(each.cause, each.steps_done, each.steps_lost) for each in found] == [
        ("node_lost", 7, 3),
        ("start_failed", 7, 0),
        ("node_lost", None, 0),
    ]


def test_interruptions__an_attempt_that_computes_lost_steps_again_loses_none_when_it_stops_by_plan() -> None:
    events = [
        event(T.DATA_READY, 1, 1, step=0),
        event(T.INTERRUPTED, 60, 1, cause="node_lost", step=60),
        event(T.DATA_READY, 70, 2, step=55),
        event(T.INTERRUPTED, 75, 2, cause="preempted", step=57),
        event(T.DATA_READY, 80, 3, step=57),
    ]
    assert [each.steps_lost for each in interruptions([], events)] == [5, 0]
