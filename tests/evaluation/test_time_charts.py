import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.figures import area, texts
from support.simulated_runs import BEGIN_S, event, simulated_run

from heliostat.observe.events import EventType
from heliostat.observe.goodput import Ledger
from heliostat.observe.spans import Category, Span
from heliostat.observe.timeline import timeline
from heliostat_evaluation.time_charts import COLOURS, label_rows, run_timeline, time_bar

NOTHING = dict.fromkeys(Category, 0.0)


def span(begin_s: float, end_s: float, category: Category, attempt: int = 1) -> Span:
    return Span(BEGIN_S + begin_s, BEGIN_S + end_s, category, attempt)


def test_time_bar__areas_and_words_follow_the_seconds() -> None:
    figure = time_bar(Ledger({**NOTHING, Category.PRODUCTIVE: 80.0, Category.DATA_WAIT: 20.0}))
    waiting, productive = (area(figure, COLOURS[each]) for each in (Category.DATA_WAIT, Category.PRODUCTIVE))
    assert productive == pytest.approx(4 * waiting, rel=0.1)
    assert texts(figure).split("\n") == ["80 s", "20 s", "productive 80%", "data wait 20%"]


def test_time_bar__nothing_measured_is_an_empty_bar() -> None:
    assert texts(time_bar(Ledger(NOTHING))) == ""


def test_colours__are_there_for_every_category_and_all_differ() -> None:
    assert COLOURS.keys() == set(Category)
    assert len(set(COLOURS.values())) == len(Category)


def test_run_timeline__workers_causes_and_categories() -> None:
    spans = [
        span(0, 60, Category.START),
        span(60, 200, Category.DATA_WAIT),
        span(200, 300, Category.PRODUCTIVE),
        span(300, 400, Category.CAPACITY),
        span(400, 600, Category.PRODUCTIVE, attempt=2),
    ]
    events = [
        event(EventType.ATTEMPT_STARTED, 10, workers=4),
        event(EventType.ATTEMPT_STARTED, 390, 2, workers=2),
        event(EventType.PREEMPTION_NOTICED, 250),
        event(EventType.INTERRUPTED, 300, cause="node_lost"),
    ]
    figure = run_timeline(spans, events)
    marks, axes = figure.axes
    assert axes.get_xlabel() == "minutes"
    assert axes.get_xlim() == (0, 10)
    tops = [tuple(segment.ravel()) for lines in axes.collections for segment in getattr(lines, "get_segments", list)()]
    assert tops == [(1.0, 4.0, 5.0, 4.0), (pytest.approx(400 / 60), 2.0, 10.0, 2.0)]
    assert [text.get_text() for text in marks.texts] == ["node lost"]
    labels = {text for axis in figure.axes for text in axis.get_legend_handles_labels()[1]}
    assert labels == {"start", "training", "capacity wait", "interruption", "preemption notice"}


@pytest.mark.parametrize("seed", range(3))
def test_run_timeline__of_simulated_runs_can_be_drawn(seed: int) -> None:
    run = simulated_run(seed)
    figure = run_timeline(timeline(run.lines, run.events), run.events)
    assert area(figure, "#ffffff") < 0.95


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), max_size=12).map(sorted), st.integers(1, 3))
def test_label_rows__no_label_covers_another_or_its_line(labels: list[tuple[int, int]], rows: int) -> None:
    found = label_rows([place for place, _ in labels], [width for _, width in labels], rows)
    assert len(found) == len(labels)
    for index, (place, width) in enumerate(labels):
        for later, row in list(zip(labels, found, strict=True))[index + 1 :]:
            own = found[index]
            if own is not None and row is not None and later[0] < place + width:
                assert own > row, "the line of the later one would cross this label"


def test_label_rows__labels_with_room_stay_low_and_those_without_are_left_out() -> None:
    assert label_rows([0, 10, 20], [5, 5, 5], 2) == [0, 0, 0]
    assert label_rows([0, 1, 2, 30], [9, 9, 9, 9], 2) == [None, 1, 0, 0]
