import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frame import BenchResult, Spread, describe, in_turns, run_bench, significant, table
from machine import PACKAGES, cpu_model, machine_facts

RESULT = BenchResult(
    bench="toy",
    ratios={"speed": 1.23456, "memory": None},
    floor_fraction=0.5,
    details={"measured": {"ours": Spread((2.0, 1.0, 3.0)).summary("images/s")}},
)
times = st.lists(st.floats(0.001, 1000), min_size=1, max_size=9)


@given(times)
def test_spread__summary_names_median_extremes_and_runs(values: list[float]) -> None:
    summary = Spread(tuple(values)).summary("s")
    assert summary["min"] <= summary["median"] <= summary["max"]
    assert (summary["unit"], summary["runs"]) == ("s", len(values))


@given(times, st.floats(0.1, 10))
def test_spread__a_machine_that_slows_down_does_not_show_in_a_ratio(values: list[float], factor: float) -> None:
    mine, theirs = Spread(tuple(values)), Spread(tuple(value * factor for value in values))
    assert theirs.over(mine).median == pytest.approx(factor)


def test_spread__of_seconds_becomes_a_rate() -> None:
    assert Spread((2.0, 4.0)).per(8).values == (4.0, 2.0)


def test_significant__keeps_four_digits() -> None:
    assert [significant(value) for value in (123456.0, 0.000123456)] == [123500.0, 0.0001235]


def test_in_turns__alternates_and_leaves_out_the_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    now, order = 0.0, []

    def work(name: str, cost: float) -> None:
        nonlocal now
        order.append(name)
        now += cost * (10 if len(order) <= 2 else 1)

    costs = in_turns({"a": lambda: work("a", 1), "b": lambda: work("b", 2)}, runs=2, clock=lambda: now)
    assert order == ["a", "b"] * 3
    assert costs == {"a": Spread((1.0, 1.0)), "b": Spread((2.0, 2.0))}
    assert "turn 2 of 2" in capsys.readouterr().err


def test_result__is_one_line_of_exactly_four_keys() -> None:
    line = RESULT.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == ["bench", "ratios", "floor_fraction", "details"]
    assert json.loads(line)["ratios"] == {"speed": 1.235, "memory": None}
    assert BenchResult.from_json(line).details == RESULT.details


def test_result__without_a_finite_number_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        BenchResult("toy", {}, math.nan, {}).to_json()


@pytest.mark.parametrize("line", ["", "# Results", "[]", '{"bench": "toy"}'])
def test_result__is_not_read_from_anything_else(line: str) -> None:
    with pytest.raises(ValueError):
        BenchResult.from_json(line)


def test_describe__shows_what_was_not_measured() -> None:
    shown = describe(RESULT)
    assert "| memory         | not measured |" in shown
    assert "| ours     | images/s | 2      | 1 to 3     | 3    |" in shown


def test_table__is_aligned_markdown() -> None:
    assert table(("a", "bb"), [("ccc", "d")]) == "| a   | bb |\n|-----|----|\n| ccc | d  |"


@pytest.mark.parametrize("quick", [False, True])
def test_run_bench__ends_with_the_result(quick: bool, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bool] = []

    def measure(is_quick: bool) -> BenchResult:
        seen.append(is_quick)
        return RESULT

    run_bench("toy", "A toy.", measure, ["--json", *(["--quick"] if quick else [])])
    result = BenchResult.from_json(capsys.readouterr().out.splitlines()[-1])
    assert seen == [quick]
    assert result.details["quick"] == quick
    assert result.details["duration_s"] >= 0
    assert set(result.details["machine"]) == set(machine_facts())


def test_run_bench__refuses_a_result_of_another_area() -> None:
    with pytest.raises(ValueError, match="the bench step returned a result of toy"):
        run_bench("step", None, lambda quick: RESULT, [])


def test_machine_facts__name_versions_cores_and_date() -> None:
    facts = machine_facts()
    assert set(facts["versions"]) == {"python", *PACKAGES}
    assert facts["cores"] >= 1
    assert facts["date_utc"].startswith(time.strftime("%Y-", time.gmtime()))


def test_cpu_model__is_read_where_it_is_told() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Abacus 2\nmodel name\t: Abacus 3\n") == "Abacus 2"
    assert cpu_model("") != ""


def test_benches__are_named_after_what_they_measure() -> None:
    for script in Path(__file__).parent.glob("bench_*.py"):
        assert f'run_bench("{script.stem.removeprefix("bench_")}", __doc__, measure)' in script.read_text()
