"""One look at a run: how far it is, and what it has cost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_runs import simulated_run
from support.written_runs import write_run

from heliostat.observe.glance import glance, worker_hours
from heliostat.observe.spans import Category, Span
from heliostat.storage.layout import run_store
from heliostat.storage.local import LocalStore


def test_worker_hours__are_those_of_each_attempt_without_waiting_for_nodes() -> None:
    spans = [
        Span(0.0, 3600.0, Category.START, 1),
        Span(3600.0, 7200.0, Category.PRODUCTIVE, 1),
        Span(7200.0, 9000.0, Category.CAPACITY, 1),
        Span(9000.0, 9900.0, Category.DOWN, 1),
        Span(9900.0, 11700.0, Category.PRODUCTIVE, 2),
    ]
    assert worker_hours(spans, {1: 4, 2: 2}) == 4 * 2 + 2 * 0.5


def test_glance__tells_progress_goodput_and_cost(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    interruptions = write_run(root, "some", 5)
    seen = glance(run_store(root, "some"), 400, 2.5)
    assert seen.status.total_steps == 400
    assert sum(seen.status.interruptions.values()) == interruptions
    assert seen.cost == pytest.approx(2.5 * seen.worker_hours)
    assert f"cost {seen.cost:,.2f}" in seen.line
    assert "worker hours" in glance(run_store(root, "some"), 400).line


@given(st.integers(0, 200))
def test_worker_hours__are_at_most_those_of_all_workers_all_the_time(seed: int) -> None:
    from heliostat.observe.attempts import attempts_of
    from heliostat.observe.timeline import timeline

    run = simulated_run(seed)
    spans = timeline(run.lines, run.events)
    workers = {number: each.workers or 0 for number, each in attempts_of(run.lines, run.events).items()}
    whole = sum(span.seconds for span in spans) / 3600
    assert 0 <= worker_hours(spans, workers) <= whole * max(workers.values(), default=0) + 1e-9
