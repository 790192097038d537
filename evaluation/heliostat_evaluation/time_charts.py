"""Where the time of a run went, as charts: one bar of all of it, and the run as it passed."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from heliostat.observe.attempts import attempts_of, seconds_of
from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import Ledger
from heliostat.observe.report import INK
from heliostat.observe.spans import WORKING, Category, Span
from heliostat_evaluation.charts import dress

COLOURS = {
    Category.PRODUCTIVE: "#2f9e5b",
    Category.DATA_WAIT: "#5b8def",
    Category.CHECKPOINT: "#1aa6b7",
    Category.EVALUATION: "#a66bd4",
    Category.LOST: "#d9483b",
    Category.START: "#8b95a7",
    Category.RECOVERY: "#e08a1e",
    Category.CAPACITY: "#c9a400",
    Category.DOWN: "#5a6274",
    Category.OTHER: "#b9a58c",
}
"""Readable on light and dark pages alike."""

_SMALLEST_LABEL = 0.06
"""Parts below this of the whole have no room for their number inside the bar."""
_UNITS = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "hours"), (3 * 60, 60, "minutes"), (0, 1, "seconds"))
"""From how many seconds on a time axis counts in which unit."""
_CHARACTER = 0.0105
"""Part of the width of the time axis that a character of a label takes."""
_LABEL_ROWS = 3


def time_bar(ledger: Ledger) -> Figure:
    """One bar of the whole wall clock, cut by what it was spent on."""
    figure = Figure(figsize=(8.4, 1.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    wall_s = ledger.wall_s
    if wall_s <= 0:
        return figure
    axes.set_xlim(0, wall_s)
    begun = 0.0
    for category, seconds in ledger.seconds.items():
        if seconds <= 0:
            continue
        part = seconds / wall_s
        label = f"{category.label} {part:.0%}"
        axes.barh(0, seconds, left=begun, color=COLOURS[category], label=label, height=0.7)
        if part >= _SMALLEST_LABEL:
            axes.text(begun + seconds / 2, 0, f"{seconds:.0f} s", ha="center", va="center", fontsize=8, color="#ffffff")
        begun += seconds
    _legend_below(figure, columns=5)
    return figure


def run_timeline(spans: Sequence[Span], events: Sequence[Event]) -> Figure:
    """Workers over time, what the run did when none trained, and what was noticed and what interrupted it.

    Args:
        spans: The timeline of the run, as `timeline` gives it; at least one.
        events: All events of the run.
    """
    begin_s, end_s = spans[0].begin_s, spans[-1].end_s
    unit_s, unit = next((unit_s, unit) for least_s, unit_s, unit in _UNITS if end_s - begin_s >= least_s)
    figure = Figure(figsize=(8.4, 3.6), dpi=150, layout="constrained")
    marks, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
    dress(axes)
    marks.set_axis_off()
    workers = {number: attempt.workers or 1 for number, attempt in attempts_of([], events).items()}
    _draw_spans(axes, spans, workers, lambda at_s: (at_s - begin_s) / unit_s)
    most = max(workers.values(), default=1)
    axes.set_xlim(0, (end_s - begin_s) / unit_s)
    axes.set_ylim(0, most * 1.06)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(unit, fontsize=8.5, color=INK)
    axes.set_ylabel("workers", fontsize=8.5, color=INK)
    _mark(marks, axes, events, lambda at_s: (at_s - begin_s) / unit_s)
    _legend_below(figure, columns=4)
    return figure


def label_rows(places: Sequence[float], widths: Sequence[float], rows: int) -> list[int | None]:
    """A row for each label, as low as can be, such that none covers another nor the line that leads up to it.

    Args:
        places: Left ends, rising; each label's line leads up to it there.
        widths: Of the labels.
        rows: That there are; labels that need more get none.
    """
    found: list[int | None] = []
    for index in reversed(range(len(places))):
        end = places[index] + widths[index]
        later = zip(places[index + 1 :], reversed(found), strict=True)
        row = max((taken + 1 for place, taken in later if place < end and taken is not None), default=0)
        found.append(row if row < rows else None)
    return found[::-1]


def _draw_spans(axes: Axes, spans: Sequence[Span], workers: Mapping[int, int], place: Callable[[float], float]) -> None:
    drawn: set[Category] = set()
    for (category, attempt), same in groupby(spans, key=_drawn_as):
        pieces = list(same)
        label = None if category in drawn else "training" if category == Category.PRODUCTIVE else category.label
        drawn.add(category)
        begin, end = place(pieces[0].begin_s), place(pieces[-1].end_s)
        if category in WORKING:
            height = workers.get(attempt, 1)
            axes.fill_between([begin, end], height, color=COLOURS[category], alpha=0.7, linewidth=0, label=label)
            axes.hlines(height, begin, end, color=COLOURS[category], linewidth=1.6)
        else:
            axes.axvspan(begin, end, color=COLOURS[category], alpha=0.4, linewidth=0, label=label)


def _drawn_as(span: Span) -> tuple[Category, int]:
    is_training = span.category in WORKING and span.category != Category.LOST
    return Category.PRODUCTIVE if is_training else span.category, span.attempt


def _mark(marks: Axes, axes: Axes, events: Sequence[Event], place: Callable[[float], float]) -> None:
    """Interruptions with their causes, and notices, above the time at which they were seen."""
    marks.set_ylim(0, _LABEL_ROWS + 1)
    found = sorted(
        (seconds_of(each.time_utc), str(each.fields.get("cause", "?"))) for each in _of(events, EventType.INTERRUPTED)
    )
    places, texts = [place(at_s) for at_s, _ in found], [cause.replace("_", " ") for _, cause in found]
    width = axes.get_xlim()[1]
    rows = label_rows(places, [(len(text) + 2) * _CHARACTER * width for text in texts], _LABEL_ROWS)
    for at, text, row in zip(places, texts, rows, strict=True):
        axes.axvline(at, color=INK, linewidth=0.7, alpha=0.6)
        if row is not None:
            marks.vlines(at, 0, row + 1.5, color=INK, linewidth=0.7, alpha=0.6)
            marks.text(at + 0.003 * width, row + 1.5, text, ha="left", va="center", fontsize=7.5, color=INK)
    marks.plot(places, [0.3] * len(places), "v", color=COLOURS[Category.LOST], markersize=5, label="interruption")
    notices = [place(seconds_of(each.time_utc)) for each in _of(events, EventType.PREEMPTION_NOTICED)]
    if notices:
        colour = COLOURS[Category.EVALUATION]
        marks.plot(notices, [0.3] * len(notices), "D", color=colour, markersize=4, label="preemption notice")


def _of(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event.type == kind]


def _legend_below(figure: Figure, columns: int) -> None:
    figure.legend(
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.0,
        columnspacing=1.6,
    )
