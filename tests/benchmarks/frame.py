"""What all benches share: flags, alternating measurement, and the shape of a result.

A bench measures its candidates beside each other in one process, in turns (A B A B …): whatever else the machine does
meanwhile falls on all of them. A ratio is the median over the turns of the two candidates' ratio within a turn, so that
a machine that slows down between turns does not show in it.

A bench file ends with ``run_bench("step", __doc__, measure)``; ``measure(quick)`` returns a ``BenchResult``. Progress
goes to standard error, the tables to standard output, and with ``--json`` its last line is the result.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from machine import machine_facts

RUNS = 5
"""Turns whose medians are reported."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of repeated runs."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def per(self, amount: float) -> "Spread":
        """``amount`` over each value: seconds become a rate."""
        return Spread(tuple(amount / value for value in self.values))

    def over(self, other: "Spread") -> "Spread":
        """This over the other, turn by turn."""
        return Spread(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    def summary(self, unit: str) -> dict[str, Any]:
        """What a result tells of it: ``unit``, ``median``, ``min``, ``max`` and the number of ``runs``."""
        return {
            "unit": unit,
            "median": significant(self.median),
            "min": significant(min(self.values)),
            "max": significant(max(self.values)),
            "runs": len(self.values),
        }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a bench found."""

    bench: str
    ratios: Mapping[str, float | None]
    """By name; larger is better unless the bench says otherwise, None was not measured."""
    floor_fraction: float | None
    """The share that is reached of what the machine allows; the bench's docstring says what bounds it."""
    details: Mapping[str, Any]
    """``measured`` holds a ``Spread.summary`` by name, and ``run_bench`` adds ``machine``, ``quick`` and
    ``duration_s``; the rest is the bench's own."""

    def to_json(self) -> str:
        """One line.

        Raises:
            ValueError: a number in it is not finite.
        """
        ratios = {name: value if value is None else significant(value) for name, value in self.ratios.items()}
        floor = self.floor_fraction if self.floor_fraction is None else significant(self.floor_fraction)
        return json.dumps(
            {"bench": self.bench, "ratios": ratios, "floor_fraction": floor, "details": dict(self.details)},
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, line: str) -> "BenchResult":
        """The result that ``to_json`` has written.

        Raises:
            ValueError: the line is something else.
        """
        fields = json.loads(line)
        names = {"bench", "ratios", "floor_fraction", "details"}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(f"a result has the keys {sorted(names)}, this is {line[:120]!r}")
        return cls(**fields)


def significant(value: float) -> float:
    """A value to four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def in_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    runs: int = RUNS,
    warm_ups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Run every candidate once per turn; what each cost by ``clock``, without the warm-up turns."""
    costs: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.monotonic()
    for turn in range(-warm_ups, runs):
        for name, run in candidates.items():
            before = clock()
            run()
            cost = clock() - before
            if turn >= 0:
                costs[name].append(cost)
        label = "warm-up" if turn < 0 else f"turn {turn + 1} of {runs}"
        tell(f"{label} of {', '.join(candidates)}; {time.monotonic() - started:.0f} s")
    return {name: Spread(tuple(values)) for name, values in costs.items()}


def tell(line: str) -> None:
    """Progress, for whoever waits."""
    print(f"  {line}", file=sys.stderr, flush=True)


def run_bench(
    area: str, description: str | None, measure: Callable[[bool], BenchResult], arguments: Sequence[str] | None = None
) -> None:
    """The command line of a bench.

    Args:
        area: its name.
        description: shown by ``--help``.
        measure: does the work; told whether to be quick.
        arguments: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less work, at most three minutes on 2 cores")
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    flags = parser.parse_args(arguments)
    facts = machine_facts()
    started = time.monotonic()
    result = measure(flags.quick)
    if result.bench != area:
        raise ValueError(f"the bench {area} returned a result of {result.bench}")
    own = {"quick": flags.quick, "duration_s": round(time.monotonic() - started, 1), "machine": facts}
    result = replace(result, details={**result.details, **own})
    print(describe(result))
    if flags.json:
        print(result.to_json())


def describe(result: BenchResult) -> str:
    """A result for people, in Markdown: its ratios, then what was measured."""
    ratios = {**result.ratios, "floor_fraction": result.floor_fraction}
    rows = [(name, "not measured" if value is None else f"{value:.3g}") for name, value in ratios.items()]
    measured = [
        (name, each["unit"], f"{each['median']:.4g}", f"{each['min']:.4g} to {each['max']:.4g}", str(each["runs"]))
        for name, each in result.details.get("measured", {}).items()
    ]
    tables = [table(("ratio", result.bench), rows)]
    if measured:
        tables.append(table(("measured", "unit", "median", "min to max", "runs"), measured))
    return "\n\n".join(tables)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned to be read as text too."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def render(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    return "\n".join([render(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(render, rows)])
