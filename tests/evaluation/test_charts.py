import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from heliostat.observe.goodput import SHARES
from heliostat.observe.metrics import StepMetrics
from heliostat_evaluation.charts import PALETTE, knn_bars, loss_curves, running_mean, time_share_bar
from heliostat_evaluation.knn import Accuracy


def area(figure: Figure, colour: str) -> float:
    """Fraction of the figure's pixels that have a colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    pixels = np.asarray(Image.open(buffer).convert("RGB")) / 255.0
    return float((np.abs(pixels - np.asarray(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return "\n".join([*found, *(text.get_text() for legend in legends if legend for text in legend.get_texts())])


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


def test_time_share_bar__areas_and_words_follow_the_seconds() -> None:
    figure = time_share_bar({**dict.fromkeys(SHARES, 0.0), "data_wait": 20.0, "student": 80.0})
    waiting, student = (area(figure, PALETTE[1 + list(SHARES).index(name)]) for name in ("data_wait", "student"))
    assert student == pytest.approx(4 * waiting, rel=0.1)
    assert texts(figure).split("\n") == ["20 s", "80 s", "waiting for images 20%", "student forward and backward 80%"]


def test_time_share_bar__nothing_measured_is_an_empty_bar() -> None:
    assert texts(time_share_bar(dict.fromkeys(SHARES, 0.0))) == ""


def test_running_mean__by_hand() -> None:
    values = np.array([1.0, 3.0, np.nan, 7.0])
    np.testing.assert_allclose(running_mean(values, 1), [2.0, 2.0, 5.0, 7.0])
    np.testing.assert_allclose(running_mean(values, 0), values)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(0, 50))
def test_running_mean__stays_within_the_values(values: list[float], reach: int) -> None:
    means = running_mean(np.array(values), reach)
    assert len(means) == len(values)
    assert means.min() >= min(values) - 1e-6 and means.max() <= max(values) + 1e-6
