"""The log of a run: which attempt may write and which checkpoints exist.

Entries are ``commits/00000001.json``, …; see ``heliostat.storage.fenced_log``. After a lease, no older attempt can
commit, retire or end anything.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from heliostat.checkpoint.format import Count, FiniteFloat, Sha256
from heliostat.storage import Store
from heliostat.storage.fenced_log import FencedLog, LogRecord
from heliostat.storage.fenced_log import Lease as Lease
from heliostat.storage.fenced_log import LeaseEntry as LeaseEntry
from heliostat.storage.fenced_log import newest_lease as newest_lease


class CheckpointEntry(LogRecord):
    """This checkpoint exists."""

    type: Literal["checkpoint"] = "checkpoint"
    step: Count
    manifest_key: str
    manifest_sha256: Sha256
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    """What its last step reported, as far as it was finite: so that the log alone says which one is the best."""


class RetireEntry(LogRecord):
    """The checkpoint of this manifest no longer exists, though its files may be there for a moment longer."""

    type: Literal["retire"] = "retire"
    manifest_key: str


class EndEntry(LogRecord):
    """The run came to its end."""

    type: Literal["end"] = "end"
    step: Count
    outcome: Literal["completed", "failed", "cancelled"]


LogEntry = LeaseEntry | CheckpointEntry | RetireEntry | EndEntry
_PARSER: TypeAdapter[LogEntry] = TypeAdapter(Annotated[LogEntry, Field(discriminator="type")])


def live_checkpoints(entries: Sequence[LogEntry]) -> tuple[CheckpointEntry, ...]:
    """Checkpoints that were committed and not retired, in the order of the log, oldest first.

    The log's order, not the step's, says which is newest: an attempt that fell back to step 900 and commits 950 has
    left the line of history that led to 1000.
    """
    live: dict[str, CheckpointEntry] = {}
    for entry in entries:
        if isinstance(entry, CheckpointEntry):
            live.pop(entry.manifest_key, None)
            live[entry.manifest_key] = entry
        elif isinstance(entry, RetireEntry):
            live.pop(entry.manifest_key, None)
    return tuple(live.values())


def has_ended(entries: Sequence[LogEntry]) -> bool:
    """Whether the run has come to its end."""
    return any(isinstance(entry, EndEntry) for entry in entries)


class CommitLog(FencedLog[LogEntry]):
    """The log of the run whose store this is."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "commits/", _PARSER)
