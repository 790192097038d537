import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.figures import area, texts

from heliostat.observe.metrics import StepMetrics
from heliostat_evaluation.charts import PALETTE, knn_bars, loss_curves, running_mean
from heliostat_evaluation.knn import Accuracy


def curve(losses: list[float | None], **terms: float) -> list[StepMetrics]:
    at = "2026-01-02T03:04:05.000000Z"
    return [StepMetrics(step, 1, at, {"loss": loss, **terms}, {}) for step, loss in enumerate(losses)]


def test_knn_bars__areas_and_numbers_follow_the_accuracies() -> None:
    figure = knn_bars({"untrained": {10: Accuracy(30, 100)}, "trained": {10: Accuracy(90, 100)}})
    assert area(figure, PALETTE[1]) == pytest.approx(3 * area(figure, PALETTE[0]), rel=0.1)
    assert {"30.0", "90.0", "untrained", "trained"} <= set(texts(figure).split("\n"))


def test_loss_curves__one_panel_per_measured_term() -> None:
    figure = loss_curves(curve([3.0, 2.5, 2.0], dino=1.0, ibot=1.0))
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.lines] == ["total loss", "dino", "ibot"]


def test_loss_curves__missing_values_leave_a_gap() -> None:
    figure = loss_curves(curve([3.0, 2.8, None, 2.2, 2.0]))
    drawn = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, [3.0, 2.8, np.nan, 2.2, 2.0])
    assert area(figure, PALETTE[1]) > 0


def test_loss_curves__interruptions_are_marked_and_the_curve_goes_on() -> None:
    figure = loss_curves(curve([3.0, 2.8, 2.6, 2.4], dino=1.0), interrupted_at=[2])
    for axes in figure.axes:
        values, _, mark = axes.lines
        assert len(np.asarray(values.get_ydata())) == 4
        assert set(np.asarray(mark.get_xdata())) == {1.5}, "between the steps 1 and 2"


def test_running_mean__by_hand() -> None:
    values = np.array([1.0, 3.0, np.nan, 7.0])
    np.testing.assert_allclose(running_mean(values, 1), [2.0, 2.0, 5.0, 7.0])
    np.testing.assert_allclose(running_mean(values, 0), values)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(0, 50))
def test_running_mean__stays_within_the_values(values: list[float], reach: int) -> None:
    means = running_mean(np.array(values), reach)
    assert len(means) == len(values)
    assert means.min() >= min(values) - 1e-6 and means.max() <= max(values) + 1e-6
