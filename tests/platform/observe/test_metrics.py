from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.observe.metrics import MetricsWriter, StepMetrics, merged_curve, read_metrics
from heliostat.storage import open_store

AT = "2026-01-02T03:04:05.000000Z"

lines = st.builds(
    StepMetrics,
    step=st.integers(0, 12),
    attempt=st.integers(1, 4),
    time_utc=st.just(AT),
    values=st.fixed_dictionaries({"loss": st.floats(0, 10)}),
    seconds=st.just({}),
)
curves = st.lists(lines, max_size=40)


def test_metrics_writer__values_and_seconds_come_back(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with MetricsWriter(store, attempt=1) as writer:
        writer.write(0, loss=9.5, lr=1e-4, images_per_s=120.0, data_wait_s=0.5, student_s=1.25)
        writer.write(1, loss=float("nan"))
    first, second = read_metrics(store)
    assert (first.step, first.attempt) == (0, 1)
    assert first.values == {"loss": 9.5, "lr": 1e-4, "images_per_s": 120.0}
    assert first.seconds == {"data_wait_s": 0.5, "student_s": 1.25}
    assert second.values == {"loss": None}


def test_metrics_writer__refuses_fields_that_every_line_has(tmp_path: Path) -> None:
    with MetricsWriter(open_store(str(tmp_path)), attempt=1) as writer, pytest.raises(ValueError, match="attempt"):
        writer.write(0, attempt=2)


def test_read_metrics__skips_notes_about_dropped_lines(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("metrics/0001/00000000.jsonl", b'{"time_utc":"%b","type":"lines_dropped","lines":3}\n' % AT.encode())
    assert read_metrics(store) == []


@given(curves)
def test_merged_curve__has_each_step_once_from_its_newest_attempt(curve: list[StepMetrics]) -> None:
    merged = merged_curve(curve)
    assert [line.step for line in merged] == sorted({line.step for line in curve})
    for line in merged:
        assert line.attempt == max(other.attempt for other in curve if other.step == line.step)


@given(curves)
def test_merged_curve__merging_again_changes_nothing(curve: list[StepMetrics]) -> None:
    assert merged_curve(merged_curve(curve)) == merged_curve(curve)


@given(curves, st.permutations([1, 2, 3, 4]))
def test_merged_curve__the_order_of_attempts_is_irrelevant(curve: list[StepMetrics], order: list[int]) -> None:
    reordered = [line for attempt in order for line in curve if line.attempt == attempt]
    assert merged_curve(reordered) == merged_curve(curve)
