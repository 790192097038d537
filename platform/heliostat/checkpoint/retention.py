"""Which checkpoints to give up, and how to remove files without ever removing one that counts.

The log entry comes first, the deletion after it: a crash in between leaves files that do not count, never a checkpoint
that counts without its files. What crashes leave behind, the next attempt sweeps.
"""

from collections.abc import Iterable, Sequence

from heliostat.checkpoint.format import folder_of
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease, RetireEntry, live_checkpoints
from heliostat.storage import Store


def to_retire(live: Sequence[CheckpointEntry], keep_last: int) -> tuple[CheckpointEntry, ...]:
    """The checkpoints to give up, oldest first, so that the newest ``keep_last`` remain.

    Raises:
        ValueError: ``keep_last`` is less than one.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, but a run needs a checkpoint to continue from")
    return tuple(live[:-keep_last])


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


def retire(store: Store, log: CommitLog, lease: Lease, keep_last: int) -> tuple[CheckpointEntry, ...]:
    """Give up all but the newest checkpoints; those given up.

    Raises:
        FencedError: A newer attempt holds the lease; nothing more was removed.
    """
    leaving = to_retire(live_checkpoints(log.read()), keep_last)
    for entry in leaving:
        log.append(lease, RetireEntry(attempt=lease.attempt, manifest_key=entry.manifest_key))
        place = folder_of(entry.manifest_key)
        if place:
            _delete_folder(store, place[0])
    return leaving


def sweep(store: Store, log: CommitLog, lease: Lease) -> tuple[str, ...]:
    """At the start of an attempt, remove what earlier ones left half-written or half-deleted; the folders removed."""
    places = (folder_of(info.key) for info in store.list("checkpoints/"))
    leftovers = abandoned((place[0] for place in places if place), live_checkpoints(log.read()), lease.attempt)
    for folder in leftovers:
        _delete_folder(store, folder)
    return leftovers


def _delete_folder(store: Store, folder: str) -> None:
    for info in list(store.list(f"{folder}/")):
        store.delete(info.key)
