"""Numbers of every step: ``metrics/<attempt:04d>/<seq:08d>.jsonl`` below the run's directory, written by one worker.

A line is flat: ``{"time_utc", "attempt", "step", "loss", "dino", …, "data_wait_s", …}``. Seconds of the phases of
`PHASES` add up to the time of the step, as far as it was measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from heliostat.observe.segments import LINES_DROPPED, Line, SegmentWriter, read_segments, utc_now
from heliostat.storage import Store

METRICS_PREFIX = "metrics"
KNN = "knn_top1"
"""Of the networks that will be delivered, where ``observe.knn`` asks for it."""

PHASES: Mapping[str, str] = {
    "data_wait_s": "waiting for images",
    "teacher_s": "teacher targets",
    "student_s": "student forward and backward",
    "optimizer_s": "gradient exchange and update",
    "ema_s": "moving the teacher",
    "checkpoint_s": "checkpoints",
    "evaluation_s": "judging the teacher",
}
"""Seconds that a step spends in each phase: the field's name and what happens there."""

_SCHEMA_FIELDS = frozenset({"time_utc", "attempt", "step"})


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one attempt measured at one step."""

    step: int
    """Number of the step, from 0: after the line of step s, s + 1 steps are done."""
    attempt: int
    time_utc: str
    """End of the step, ISO 8601, UTC."""
    values: Mapping[str, float | None]
    """Loss, its terms, learning rate, images per second and the like; none where the number was not finite."""
    seconds: Mapping[str, float]
    """Seconds of the phases of `PHASES`, as far as they were measured."""

    @classmethod
    def from_line(cls, line: Line) -> "StepMetrics":
        """The metrics that one line of the stream holds."""
        seconds = {name: line[name] or 0.0 for name in PHASES if name in line}
        values = {name: value for name, value in line.items() if name not in _SCHEMA_FIELDS and name not in PHASES}
        return cls(line["step"], line["attempt"], line["time_utc"], values, seconds)


class MetricsWriter:
    """Writes the metrics of one attempt. Never stops the caller, never waits for the store.

    Args:
        store: The store of the run.
        attempt: Number of the attempt, as its lease says.
        flush_interval_s: Seconds until a line is in the store at the latest, if the store answers.
    """

    def __init__(self, store: Store, attempt: int, flush_interval_s: float = 2.0) -> None:
        self._segments = SegmentWriter(
            store, f"{METRICS_PREFIX}/{attempt:04d}", flush_interval_s, common={"attempt": attempt}
        )

    def write(self, step: int, **values: float) -> None:
        """Write the line of one step (from 0): loss, its terms, learning rate, ``images_per_s``, seconds of the phases.

        Raises:
            ValueError: A value has the name of a field that every line has.
        """
        if taken := _SCHEMA_FIELDS & values.keys():
            raise ValueError(f"every line has {sorted(taken)} already")
        self._segments.write({"time_utc": utc_now(), "step": step, **values})

    def flush(self) -> bool:
        """Write what is buffered now; false when the store failed."""
        return self._segments.flush()

    def unwritten(self) -> bytes:
        """The lines that are not known to be in the store, encoded."""
        return self._segments.unwritten()

    def adopt(self, lines: bytes) -> None:
        """Write the ``unwritten`` lines of an attempt that this one goes on from; they stay that attempt's."""
        self._segments.write_encoded(lines)

    def close(self) -> None:
        """Write the rest and stop."""
        self._segments.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_step(line: Line) -> bool:
    """Whether a line of the stream is one of a step, not a note about dropped lines."""
    return line.get("type") != LINES_DROPPED


def read_metrics(store: Store) -> list[StepMetrics]:
    """All lines of all attempts as they were written; `merged_curve` makes one curve of them."""
    return [StepMetrics.from_line(line) for line in read_segments(store, METRICS_PREFIX) if is_step(line)]


def merged_curve(metrics: Iterable[StepMetrics]) -> list[StepMetrics]:
    """One line per step in the order of steps.

    Of a step that several attempts computed, the newest attempt's line counts: the older attempt's work was lost with
    it. Within one attempt the later line counts.
    """
    newest: dict[int, StepMetrics] = {}
    for line in metrics:
        known = newest.get(line.step)
        if known is None or line.attempt >= known.attempt:
            newest[line.step] = line
    return [newest[step] for step in sorted(newest)]
