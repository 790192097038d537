import random

from support.simulated_runs import SimulatedRun, simulated_run

from heliostat.observe.events import Event
from heliostat.observe.interruptions import Interruption, interruptions
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.report import KeyNumbers, Picture, Section, Table
from heliostat.observe.spans import Category
from heliostat_jobs.demo_report import exactness
from heliostat_jobs.run_report import INTERRUPTION_COLUMNS, interruption_rows, report_time


def section_of(metrics: list[StepMetrics], events: list[Event]) -> Section:
    section = Section("Where the time went")
    report_time(section, 100.0, metrics, events, interruptions(metrics, events))
    return section


def test_interruption_rows__are_words_and_dashes() -> None:
    stops = [
        Interruption(1075.0, 1, "node_lost", (1, 3), 7, 3, 20.25, "memory"),
        Interruption(8020.0, 2, "hang", (), None, None, None, None),
    ]
    assert interruption_rows(stops, begin_s=1000.0) == [
        ("1:15 min", "node lost", "1, 3", "3", "20.2 s", "memory"),
        ("1:57 h", "hang", "-", "-", "-", "-"),
    ]


def test_report_time__an_interrupted_run_has_a_timeline_and_its_interruptions() -> None:
    run = next(run for run in map(simulated_run, range(100)) if len(interruptions(run.lines, run.events)) > 3)
    blocks = section_of(run.lines, run.events).blocks
    numbers, spent, stops = blocks[0], *(block for block in blocks if isinstance(block, Table))
    assert isinstance(numbers, KeyNumbers)
    assert [number.label for number in numbers.numbers] == ["goodput", "throughput", "wall clock", "interruptions"]
    assert sum(float(row[1]) for row in spent.rows) == len(run.spent)
    assert stops.header == INTERRUPTION_COLUMNS
    assert str(len(stops.rows)) == numbers.numbers[-1].value
    assert sum(isinstance(block, Picture) for block in blocks) == 2


def test_report_time__an_unbroken_run_has_neither() -> None:
    run = SimulatedRun(random.Random(0))
    run.begin(Category.START, None)
    run.work(4)
    run.finish()
    blocks = section_of(run.lines, run.events).blocks
    assert sum(isinstance(block, Picture) for block in blocks) == 1
    assert sum(isinstance(block, Table) for block in blocks) == 1


def test_exactness__is_said_either_way() -> None:
    assert exactness(19200, is_exact=True).startswith(
        "No image was lost or repeated out of turn: the ids of the 19,200"
    )
    assert "another digest" in exactness(19200, is_exact=False)
