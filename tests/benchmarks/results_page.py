"""RESULTS.md: what all benches found, for people and, line by line, for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frame import BenchResult, describe, table


@dataclass(frozen=True, slots=True)
class Failure:
    """A bench without a result; ``bench`` is the name of its file without the suffix."""

    bench: str
    reason: str


def results_page(facts: Mapping[str, Any], found: Sequence[BenchResult | Failure], quick: bool) -> str:
    """The whole page, in Markdown."""
    mode = "Quick runs: small sizes, for a look only; `make bench` measures." if quick else "Full runs."
    head = [
        "# Benchmark results",
        f"Written by `make bench`. {mode} Medians with the smallest and the largest run; candidates were measured in "
        "turns in one process. What a ratio means is said at the top of its `bench_<area>.py`.",
        _machine_table(facts),
    ]
    sections = [_section(each) for each in found]
    lines = [each.to_json() for each in found if isinstance(each, BenchResult)]
    return "\n\n".join([*head, *sections, "## Results as JSON", "\n".join(["```json", *lines, "```"])]) + "\n"


def durations_of(page: str, quick: bool) -> dict[str, float]:
    """Seconds that each bench file took when the page was written in the same mode."""
    durations: dict[str, float] = {}
    for line in page.splitlines():
        try:
            result = BenchResult.from_json(line)
        except ValueError:  # the rest of the page
            continue
        if result.details.get("quick") == quick:
            durations[f"bench_{result.bench}"] = float(result.details["duration_s"])
    return durations


def _machine_table(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    rows = [
        ("date", facts["date_utc"]),
        ("CPU", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB"),
        ("GPU", facts["gpu"] or "none"),
        ("load before the runs", f"{facts['load_1min']:.2f} (1 min)"),
        ("system", facts["system"]),
        ("versions", versions),
    ]
    return table(("machine", ""), rows)


def _section(found: BenchResult | Failure) -> str:
    if isinstance(found, Failure):
        return f"## {found.bench}\n\n**Failed:** {found.reason}."
    notes = "".join(f"\n\n{note}" for note in found.details.get("notes", ()))
    return f"## {found.bench}\n\n{describe(found)}{notes}"
