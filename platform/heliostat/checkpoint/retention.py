"""Which checkpoints to give up, and how to remove files without ever removing one that counts.

The log entry comes first, the deletion after it: a crash in between leaves files that do not count, never a checkpoint
that counts without its files. What crashes leave behind, the next attempt sweeps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heliostat.checkpoint.format import folder_of
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease, RetireEntry, live_checkpoints
from heliostat.storage import Store


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints of a run are worth their space; one that any rule keeps is kept.

    Raises:
        ValueError: ``last`` is less than one.
    """

    last: int
    """So many of the newest."""
    every_steps: int | None = None
    """For ever, the first one at or after each multiple: a save may have had to wait for the one before it."""
    best: str | None = None
    """Metric by which the best one is kept; without it in the log, a checkpoint is never the best."""
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"the newest {self.last} are kept, but a run needs a checkpoint to continue from")


def to_retire(live: Sequence[CheckpointEntry], keep: Keep) -> tuple[CheckpointEntry, ...]:
    """The checkpoints to give up, oldest first: those of a history that was left behind, and those that no rule keeps.

    An attempt that found the newest checkpoint corrupt and went on from an older one has left it behind once it commits
    that step, or an earlier one, itself.
    """
    history = [entry for index, entry in enumerate(live) if all(later.step > entry.step for later in live[index + 1 :])]
    kept = {entry.manifest_key for entry in [*history[-keep.last :], *_milestones(history, keep.every_steps)]}
    if best := best_of(history, keep):
        kept.add(best.manifest_key)
    return tuple(entry for entry in live if entry.manifest_key not in kept)


def best_of(live: Sequence[CheckpointEntry], keep: Keep) -> CheckpointEntry | None:
    """The best checkpoint by its metric, of equals the oldest; None if none has it or nobody asks."""
    if keep.best is None:
        return None
    sign = 1 if keep.best_mode == "min" else -1
    judged = [entry for entry in live if keep.best in entry.metrics]
    return min(judged, key=lambda entry: sign * entry.metrics[str(keep.best)], default=None)


def _milestones(live: Sequence[CheckpointEntry], every_steps: int | None) -> tuple[CheckpointEntry, ...]:
    if every_steps is None:
        return ()
    first: dict[int, CheckpointEntry] = {}
    for entry in live:
        if multiple := entry.step // every_steps:
            first.setdefault(multiple, entry)
    return tuple(first.values())


def abandoned(folders: Iterable[str], live: Sequence[CheckpointEntry], attempt: int) -> tuple[str, ...]:
    """Folders of checkpoints that do not count and never will: of earlier attempts, and not live.

    Safe for a fenced-off attempt too: before its lease was in the log, all older attempts had committed what they ever
    will, and folders of newer ones are not touched.
    """
    counted = {place[0] for entry in live if (place := folder_of(entry.manifest_key))}
    return tuple(
        sorted(
            folder
            for folder in set(folders) - counted
            if (place := folder_of(folder)) is not None and place[1] < attempt
        )
    )


def retire(store: Store, log: CommitLog, lease: Lease, keep: Keep) -> tuple[CheckpointEntry, ...]:
    """Give up the checkpoints that no rule keeps; those given up.

    Raises:
        FencedError: A newer attempt holds the lease; nothing more was removed.
    """
    leaving = to_retire(live_checkpoints(log.read()), keep)
    for entry in leaving:
        log.append(lease, RetireEntry(attempt=lease.attempt, manifest_key=entry.manifest_key))
        place = folder_of(entry.manifest_key)
        if place:
            _delete_folder(store, place[0])
    return leaving


def sweep(store: Store, log: CommitLog, lease: Lease) -> tuple[str, ...]:
    """At the start of an attempt, remove what earlier ones left half-written or half-deleted; the folders removed."""
    found = {info.key for info in store.list("checkpoints/")} | set(store.unfinished("checkpoints"))
    places = (folder_of(key) for key in found)
    leftovers = abandoned((place[0] for place in places if place), live_checkpoints(log.read()), lease.attempt)
    for folder in leftovers:
        store.discard_unfinished(folder)
        _delete_folder(store, folder)
    return leftovers


def _delete_folder(store: Store, folder: str) -> None:
    for info in list(store.list(f"{folder}/")):
        store.delete(info.key)
