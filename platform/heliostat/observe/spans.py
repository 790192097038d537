"""What the time of a run can be spent on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from heliostat.observe.documented import DocumentedEnum


class Category(DocumentedEnum):
    """What a second of the wall clock was spent on; each member's docstring says what it means."""

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.value.replace("_", " ")

    PRODUCTIVE = "productive", "steps that count"
    DATA_WAIT = "data_wait", "waiting for images"
    CHECKPOINT = "checkpoint", "training waits for a checkpoint"
    EVALUATION = "evaluation", "judging the teacher"
    LOST = "lost_work", "steps computed again later, or broken off"
    START = "start", "until the first step begins"
    RECOVERY = "recovery", "from an interruption to the next step"
    CAPACITY = "capacity_wait", "waiting for capacity"
    DOWN = "down", "nobody looked after the run"
    OTHER = "other", "after the last step, and what is not known"


WORKING = frozenset({Category.PRODUCTIVE, Category.DATA_WAIT, Category.CHECKPOINT, Category.EVALUATION, Category.LOST})
"""Categories of the time in which workers go from step to step."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a run's wall clock."""

    begin_s: float
    """Seconds since 1970."""
    end_s: float
    category: Category
    attempt: int
    """The attempt that it belongs to; 0 before the first."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s


def cut(begin_s: float, end_s: float, attempt: int, parts: Mapping[Category, float], rest: Category) -> Iterator[Span]:
    """Spans that fill a time: as long as their parts, the rest last.

    Args:
        begin_s: Begin of the time, in seconds since 1970.
        end_s: End of it.
        attempt: That they belong to.
        parts: Seconds by category; all are shortened alike where they exceed the time.
        rest: Category of what the parts leave.
    """
    wanted_s = sum(parts.values())
    scale = min(1.0, (end_s - begin_s) / wanted_s) if wanted_s > 0 else 0.0
    for category, seconds in parts.items():
        until_s = min(end_s, begin_s + scale * seconds)
        if until_s > begin_s:
            yield Span(begin_s, until_s, category, attempt)
            begin_s = until_s
    if end_s > begin_s:
        yield Span(begin_s, end_s, rest, attempt)
