"""What happened to a run, as a stream of events: ``events/<attempt:04d>/<seq:08d>.jsonl`` below the run's directory.

Events are rare and mean something; numbers of every step are in ``metrics.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from heliostat.observe.documented import DocumentedEnum
from heliostat.observe.redaction import redact_value
from heliostat.observe.segments import LINES_DROPPED, Line, SegmentWriter, read_segments, utc_now
from heliostat.storage import Store

EVENTS_PREFIX = "events"
_SCHEMA_FIELDS = frozenset({"time_utc", "type", "attempt", "rank"})


class EventType(DocumentedEnum):
    """The events that this version writes; each member's docstring says when."""

    SUPERVISION_STARTED = (
        "supervision_started",
        "A driver looks after the run from now on, with `min_workers` to `max_workers` workers.",
    )
    CAPACITY_AWAITED = "capacity_awaited", "There is room for `usable` workers, at least `needed` are; the run waits."
    WORKERS_STARTING = "workers_starting", "`workers` workers are being started, on `nodes`."
    ATTEMPT_STARTED = "attempt_started", "An attempt holds the lease and starts its workers; `workers` says how many."
    RESUMED = (
        "resumed",
        "Training state was read as it was after `step` steps: from a committed checkpoint (`source` storage) or from "
        "a snapshot in the memory of other nodes (`source` memory).",
    )
    DATA_READY = "data_ready", "The first batch of the attempt has arrived at the workers."
    PREEMPTION_NOTICED = (
        "preemption_noticed",
        "`nodes` will be taken away in `deadline_s` seconds, with the workers `ranks`.",
    )
    PREEMPTION_WITHDRAWN = "preemption_withdrawn", "`nodes` stay after all."
    RESIZE_PLANNED = (
        "resize_planned",
        "The attempt will stop after a step and a checkpoint, to go on with `workers` workers; `reason` says why.",
    )
    ORDER_RECEIVED = "order_received", "`worker` was told at `told_utc` to do `order` at the end of a step."
    HANG_DETECTED = (
        "hang_detected",
        "The workers `ranks` have not moved for `silent_s` seconds and are ended; their stacks are in `stacks`.",
    )
    STRAGGLER_NAMED = (
        "straggler_named",
        "`worker` takes `times` as long over its part of a step as the others.",
    )
    INTERRUPTED = (
        "interrupted",
        "An attempt was interrupted when `step` steps were done; `cause`, `ranks`, `nodes` and `detail` say by what.",
    )
    GAVE_UP = "gave_up", "The run stops: `cause` has used up what is allowed of it."
    SUPERVISION_ENDED = "supervision_ended", "The driver looks after the run no longer; `outcome` says how it ended."
    SNAPSHOT_FAILED = (
        "snapshot_failed",
        "The state after `step` steps is not in other nodes' memory; `reason` says why.",
    )
    DATA_STALLED = "data_stalled", "No images came for `waited_s` seconds before `step`; the run waits on."
    DATA_RESUMED = "data_resumed", "Images came again before `step`, after `waited_s` seconds."
    FEEDER_REPLACED = (
        "feeder_replaced",
        "A process that reads and decodes for `worker` died (`cause`) before `step`, and another one does its work.",
    )
    READS_AMPLIFIED = "reads_amplified", "Reading a selection costs `times` its own bytes; `advice` says what helps."
    CHECKPOINT_COMMITTED = "checkpoint_committed", "The checkpoint of `step` is in the commit log."
    CHECKPOINT_REJECTED = "checkpoint_rejected", "The checkpoint of `step` was not accepted; `reason` says why."
    START_JUDGED = (
        "start_judged",
        "What the run goes on with was judged before its first step; `knn_top1` says how well.",
    )
    KNN_FELL = "knn_fell", "After `step`, one of the first ones, k-NN is `after`; it was `before` before the run."
    EVALUATION_FAILED = "evaluation_failed", "The teacher after `step` could not be judged; `reason` says why."
    STEP_SKIPPED = "step_skipped", "The update of `step` was left out; `reason` says why, `sample_ids` where."
    TRACKER_FAILED = "tracker_failed", "`tracker` does not take metrics (`reason`); the run goes on without it."
    ATTEMPT_ENDED = "attempt_ended", "An attempt stopped, whatever the `cause`."
    RUN_FINISHED = "run_finished", "The last step of the run is committed."
    LINES_DROPPED = LINES_DROPPED, "The store failed for so long that `lines` lines of this stream were given up."


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run."""

    time_utc: str
    """ISO 8601, UTC."""
    type: str
    """An `EventType`, or a name that a newer version wrote."""
    attempt: int
    rank: int | None
    """The worker that it happened to; none for the run as a whole."""
    fields: Mapping[str, Any]
    """What this type of event tells besides."""

    def to_line(self) -> Line:
        """The event as one JSON object; ``rank`` is left out when there is none."""
        rank = {} if self.rank is None else {"rank": self.rank}
        return {"time_utc": self.time_utc, "type": str(self.type), "attempt": self.attempt, **rank, **self.fields}

    @classmethod
    def from_line(cls, line: Line) -> "Event":
        """The event that ``to_line`` wrote; fields of newer versions are kept."""
        fields = {name: value for name, value in line.items() if name not in _SCHEMA_FIELDS}
        return cls(line["time_utc"], line["type"], line["attempt"], line.get("rank"), fields)


class EventWriter:
    """Writes the events of one attempt. Thread-safe; never stops the caller, never waits for the store.

    Args:
        store: The store of the run.
        attempt: Number of the attempt, as its lease says.
        rank: The worker that writes, if it is one.
        flush_interval_s: Seconds until an event is in the store at the latest, if the store answers.
        stream: Name of the folder of events that is written, for who sees more attempts than one; None is the
            attempt's.
    """

    def __init__(
        self,
        store: Store,
        attempt: int,
        rank: int | None = None,
        flush_interval_s: float = 1.0,
        *,
        stream: str | None = None,
    ) -> None:
        self.attempt = attempt
        """That the next events speak of."""
        self._rank = rank
        folder = f"{attempt:04d}" if stream is None else stream
        self._segments = SegmentWriter(
            store, f"{EVENTS_PREFIX}/{folder}", flush_interval_s, common={"attempt": attempt}
        )

    def emit(self, type: EventType, **fields: object) -> None:
        """Write one event with its fields; secrets in them are redacted.

        Raises:
            ValueError: A field has the name of one that every event has.
        """
        if taken := _SCHEMA_FIELDS & fields.keys():
            raise ValueError(f"every event has {sorted(taken)} already")
        hidden = {name: redact_value(value) for name, value in fields.items()}
        self._segments.write(Event(utc_now(), type, self.attempt, self._rank, hidden).to_line())

    def flush(self) -> bool:
        """Write what is buffered now; false when the store failed."""
        return self._segments.flush()

    def close(self) -> None:
        """Write the rest and stop."""
        self._segments.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(store: Store) -> list[Event]:
    """All events of a run, attempt by attempt, in the order of their times."""
    events = [Event.from_line(line) for line in read_segments(store, EVENTS_PREFIX)]
    return sorted(events, key=lambda event: (event.attempt, event.time_utc))
