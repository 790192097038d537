"""What the sweep makes of single situations; whole runs are in ``test_goodput.py``."""

import pytest
from support.simulated_runs import BEGIN_S, event, step

from heliostat.observe.events import Event
from heliostat.observe.events import EventType as T
from heliostat.observe.goodput import ledger_of
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.timeline import timeline


def spent(metrics: list[StepMetrics], events: list[Event], now_s: float | None = None) -> dict[str, float]:
    """Seconds of the categories that have any."""
    found = ledger_of(timeline(metrics, events, None if now_s is None else BEGIN_S + now_s))
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
def test_timeline__table(case: str) -> None:
    metrics, events, now_s, expected = TABLE[case]
    assert spent(metrics, events, now_s) == expected
    assert spent([*metrics[::-1], *metrics], [*events[::-1], *events], now_s) == expected
