"""Which snapshot to go on from: pure, over what holders say they have."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import LeaseEntry, LogEntry
from heliostat.elastic.holders import Part, Replica


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A snapshot that is whole."""

    manifest: CheckpointManifest
    replicas: tuple[Replica, ...]
    lines: bytes
    """Of metrics that were not in the store when it was taken."""


def newest_snapshot(replicas: Sequence[Replica], entries: Sequence[LogEntry]) -> FoundSnapshot | None:
    """The newest snapshot of which the parts of all workers are there; None if there is none.

    Args:
        replicas: What holders have.
        entries: Of the run's commit log; a snapshot whose attempt is not in it is of another run.
    """
    nonces = {entry.attempt: entry.nonce for entry in entries if isinstance(entry, LeaseEntry)}
    by_snapshot: defaultdict[tuple[int, int], list[Replica]] = defaultdict(list)
    for replica in replicas:
        name = replica.part.name
        if nonces.get(name.attempt) == replica.part.lease_nonce:
            by_snapshot[name.attempt, name.step].append(replica)
    for place in sorted(by_snapshot, reverse=True):
        found = by_snapshot[place]
        if manifest := _whole([replica.part for replica in found]):
            return FoundSnapshot(manifest, tuple(found), next(r.part.lines for r in found if r.part.name.rank == 0))
    return None


def _whole(parts: Sequence[Part]) -> CheckpointManifest | None:
    by_rank = {part.name.rank: CheckpointManifest.model_validate_json(part.manifest) for part in parts}
    first = next(iter(by_rank.values()))
    if set(by_rank) != set(range(first.world_size)):
        return None
    shards = tuple(by_rank[rank].shards[0] for rank in range(first.world_size))
    return first.model_copy(update={"shards": shards})
