"""What all rows of the fault matrix share: what is told of a fault, the table, and the totals."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one fault. ``None`` is what nobody can know: of a run that did not end, say, what it lost."""

    fault: str
    survived: bool
    is_exact: bool
    """Whether the result is the one without the fault: only then it is known that no sample was lost or repeated."""
    steps_lost: int = 0
    """Steps that were computed again."""
    detect_s: float | None = None
    """From the fault to the first word of the platform about it; None where it says none."""
    recover_s: float | None = None
    """From the end of the fault to the end of the first step after it."""
    false_restarts: int = 0
    """Attempts that the fault did not need."""
    goodput: float | None = None
    """Share of the time that an undisturbed run would have taken too; of a whole row, told once."""
    note: str = ""

    @property
    def lost(self) -> int | None:
        """Samples that were stored, and that the loss never saw."""
        return 0 if self.is_exact else None

    @property
    def repeated(self) -> int | None:
        """Samples that it saw twice in an epoch."""
        return 0 if self.is_exact else None

    def noted(self, note: str) -> Self:
        """With one more remark."""
        return replace(self, note="; ".join(filter(None, (self.note, note))))

    def checked(self, is_ok: bool, *seen: object) -> Self:
        """Not survived if something else is wrong; the note then tells what was seen."""
        return self if is_ok else replace(self.noted(f"seen: {', '.join(map(str, seen))}"), survived=False)


HEADINGS = ("fault", "survived", "lost", "repeated", "steps lost", "detect s", "recover s", "note")


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per fault, in columns."""
    rows = [HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def totals(outcomes: Sequence[Outcome]) -> str:
    """One JSON object about all of them. What one outcome does not know is unknown of the sum."""
    recovered = [outcome.recover_s for outcome in outcomes if outcome.recover_s is not None]
    goodputs = [outcome.goodput for outcome in outcomes if outcome.goodput is not None]
    return json.dumps(
        {
            "faults": len(outcomes),
            "survived": sum(outcome.survived for outcome in outcomes),
            "samples_lost": _sum(outcome.lost for outcome in outcomes),
            "samples_repeated": _sum(outcome.repeated for outcome in outcomes),
            "false_restarts": sum(outcome.false_restarts for outcome in outcomes),
            "recovery_s": {
                "p50": round(statistics.median(recovered), 1) if recovered else None,
                "max": round(max(recovered), 1) if recovered else None,
            },
            "goodput": round(math.prod(goodputs) ** (1 / len(goodputs)), 3) if goodputs else None,
        }
    )


def is_passed(outcomes: Iterable[Outcome]) -> bool:
    """Whether all faults were survived, and no run was interrupted without one."""
    return all(outcome.survived and not outcome.false_restarts for outcome in outcomes)


def seconds_to_recover(step_ends: Sequence[float], fault_end: float, until: float = math.inf) -> float | None:
    """From the end of a fault to the end of the step that it delayed most.

    Args:
        step_ends: Unix times, in order.
        fault_end: Unix time.
        until: Steps that begin later are another fault's.

    Returns:
        Zero or more seconds, None if there is no step after the fault.
    """
    gaps = [(end - start, end) for start, end in pairwise(step_ends) if end > fault_end and start < until]
    return max(gaps, key=lambda gap: gap[0])[1] - fault_end if gaps else None


def _cells(outcome: Outcome) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

    counts = (outcome.lost, outcome.repeated, outcome.steps_lost, outcome.detect_s, outcome.recover_s)
    return (outcome.fault, "yes" if outcome.survived else "NO", *map(number, counts), outcome.note)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
