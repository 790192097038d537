"""RESULTS.md: what all benches found, for people and, line by line, for programs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from frame import BenchResult, describe, table

_SECTION = "\n## Machine: "


@dataclass(frozen=True, slots=True)
class Failure:
    """A bench without a result; ``bench`` is the name of its file without the suffix."""

    bench: str
    reason: str


def machine_kind(facts: Mapping[str, Any]) -> str:
    """What the page has one section of: the GPU's name, or ``CPU`` without one."""
    return facts["gpu"] or "CPU"


def results_page(
    facts: Mapping[str, Any], found: Sequence[BenchResult | Failure], quick: bool, before: str = ""
) -> str:
    """The whole page, in Markdown.

    Args:
        facts: the machine's.
        found: what its benches found.
        quick: whether they were.
        before: the page that is there; its sections of other kinds of machines stay as they are.
    """
    head = (
        "# Benchmark results\n\nWritten by `make bench`; a section per kind of machine, each from the last run there. "
        "Medians with the smallest and the largest run; candidates were measured in turns. What a ratio means is said "
        "at the top of its `bench_<area>.py`."
    )
    sections = {**_sections(before), machine_kind(facts): _machine_section(facts, found, quick)}
    return "\n\n".join([head, *(sections[kind] for kind in sorted(sections))]) + "\n"


def results_of(page: str, kind: str) -> list[BenchResult]:
    """What the page says of this kind of machine."""
    results = []
    for line in _sections(page).get(kind, "").splitlines():
        with suppress(ValueError):  # the rest of the section
            results.append(BenchResult.from_json(line))
    return results


def durations_of(page: str, quick: bool, kind: str) -> dict[str, float]:
    """Seconds that each bench file took on this kind of machine, in the same mode."""
    return {
        f"bench_{result.bench}": float(result.details["duration_s"])
        for result in results_of(page, kind)
        if result.details.get("quick") == quick
    }


def _sections(page: str) -> dict[str, str]:
    """The page's sections by kind of machine."""
    _, *parts = f"\n{page}".split(_SECTION)
    return {part.partition("\n")[0]: f"{_SECTION}{part}".strip() for part in parts}


def _machine_section(facts: Mapping[str, Any], found: Sequence[BenchResult | Failure], quick: bool) -> str:
    mode = "Quick runs: small sizes, for a look only; `make bench` measures." if quick else "Full runs."
    title = f"{_SECTION}{machine_kind(facts)}".strip()
    lines = [each.to_json() for each in found if isinstance(each, BenchResult)]
    machine_json = ["### Results as JSON", "\n".join(["```json", *lines, "```"])]
    return "\n\n".join([title, mode, _machine_table(facts), *(_section(each) for each in found), *machine_json])


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
        return f"### {found.bench}\n\n**Failed:** {found.reason}."
    notes = "".join(f"\n\n{note}" for note in found.details.get("notes", ()))
    return f"### {found.bench}\n\n{describe(found)}{notes}"
