from dataclasses import replace
from pathlib import Path

import pytest

from frame import BenchResult
from machine import machine_facts
from results_page import Failure, durations_of, results_of, results_page
from run_all import Outlook, run_benches

FOUND = BenchResult(
    "toy", {"speed": 1.5}, None, {"quick": True, "duration_s": 42.0, "measured": {}, "notes": ["Toys only."]}
)
GOOD = f"import sys\nprint('some table')\nprint({FOUND.to_json()!r} if '--quick' in sys.argv else '')\n"


@pytest.fixture
def scripts(tmp_path: Path) -> list[Path]:
    texts = {
        "bench_a": "print('lost in thought')",
        "bench_b": "raise SystemExit(3)",
        "bench_c": GOOD,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return sorted(tmp_path.glob("*.py"))


def test_run_benches__goes_on_after_a_failure_and_names_it(
    scripts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    silent, broken, good = run_benches(scripts, quick=True, expected_s={"bench_b": 5})
    assert isinstance(silent, Failure) and silent.bench == "bench_a" and "no result" in silent.reason
    assert broken == Failure("bench_b", "exit status 3")
    assert good == FOUND
    told = capsys.readouterr()
    assert "[2/3] bench_b: 0:00; all: 0:0" in told.out
    assert "bench_b FAILED: exit status 3" in told.err


@pytest.mark.parametrize(
    ("expected_s", "eta"),
    [
        ({"a": 60.0, "b": 100.0}, "ETA 2:30"),
        ({"a": 5.0, "b": 100.0}, "ETA 1:40"),  # longer than last time: it may end at any moment
        ({"a": 60.0}, "ETA unknown at the first run"),
    ],
)
def test_outlook__expects_what_was_before(expected_s: dict[str, float], eta: str) -> None:
    assert Outlook(0.0, 2, expected_s).line("a", 1, ["b"], running_s=10.0).endswith(eta)


def test_results_page__shows_machine_tables_failures_and_json() -> None:
    page = results_page(machine_facts(), [FOUND, Failure("bench_b", "exit status 3")], quick=True)
    for part in ("Quick runs", "python 3.", "### toy", "| speed ", "Toys only.", "**Failed:** exit status 3."):
        assert part in page
    assert page.splitlines()[-2] == FOUND.to_json()


def test_results_page__keeps_what_was_measured_on_other_machines() -> None:
    here, there = machine_facts() | {"gpu": None}, machine_facts() | {"gpu": "Abacus 9000"}
    slower = replace(FOUND, ratios={"speed": 0.5})
    first = results_page(there, [FOUND], quick=False, before="# Some other page\n\n## toy\n")
    both = results_page(here, [slower], quick=True, before=first)
    assert both.startswith(first.partition("\n## ")[0]) and "Some other page" not in both
    assert [line for line in both.splitlines() if line.startswith("## ")] == [
        "## Machine: Abacus 9000",
        "## Machine: CPU",
    ]
    assert both.index(FOUND.to_json()) < both.index(slower.to_json())
    assert results_page(here, [slower], quick=True, before=both) == both
    assert slower.to_json() not in results_page(here, [FOUND], quick=True, before=both)


def test_durations_of__reads_the_same_mode_and_kind_of_machine() -> None:
    page = results_page(machine_facts() | {"gpu": None}, [FOUND], quick=True)
    assert [each.to_json() for each in results_of(page, "CPU")] == [FOUND.to_json()]
    assert durations_of(page, quick=True, kind="CPU") == {"bench_toy": 42.0}
    assert durations_of(page, quick=False, kind="CPU") == {}
    assert durations_of(page, quick=True, kind="Abacus 9000") == durations_of("", quick=True, kind="CPU") == {}
