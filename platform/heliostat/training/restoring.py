"""Continuing from the newest state that is whole: a committed checkpoint, or a snapshot in other nodes' memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.places import ShardSource
from heliostat.checkpoint.verify import Choice, Rejected, newest_good
from heliostat.elastic.holders import HeldSource, find_parts, take_over
from heliostat.elastic.snapshots import FoundSnapshot, newest_snapshot
from heliostat.errors import CheckpointError, CorruptCheckpointError, SnapshotLostError
from heliostat.objectives.step_state import StepState
from heliostat.storage import Store
from heliostat.training.collective import Agreement, first_does_long
from heliostat.training.state import load_state

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What an attempt goes on from."""

    manifest: CheckpointManifest
    rejected: tuple[Rejected, ...] = ()
    """Newer checkpoints that were passed over."""
    committed: int = 0
    """Steps that are done in the newest checkpoint of the store."""
    from_memory: bool = False
    lines: bytes = b""
    """Of metrics that are to be written again."""


@dataclass(frozen=True, slots=True)
class Restorer:
    """Makes students and teachers what they were; all workers call it alike.

    Args:
        store: The run's.
        log: The run's.
        agreement: Of all workers.
        training: To be restored.
    """

    store: Store
    log: CommitLog
    agreement: Agreement
    training: StepState

    def restore(self, holders: Sequence[Any] = ()) -> Restored | None:
        """From the newest of both, and say which it is; None before the first one.

        Args:
            holders: That may have snapshots.

        Raises:
            NoCheckpointError: there are committed checkpoints, but not one is usable.
            IncompatibleCheckpointError: the checkpoint is of another model.
            CorruptCheckpointError: bytes changed between being verified and being read.
            SnapshotLostError: all there is is a snapshot that cannot be read; the next attempt will not find it.
        """
        choice = first_does_long(self.agreement, partial(self._choose, False))
        if holders and (restored := self._from_memory(holders, choice)):
            return restored
        return self._from_store(choice)

    def _from_memory(self, holders: Sequence[Any], choice: Choice | None) -> Restored | None:
        snapshot = first_does_long(self.agreement, lambda: self._newer_snapshot(holders, choice))
        if snapshot is None:
            return None
        try:
            self._load(HeldSource(snapshot.replicas), snapshot.manifest)
        except CheckpointError as error:
            _log.warning("the snapshot after step %d is not used: %s", snapshot.manifest.step, error)
            if choice is None:  # the first weights are overwritten in part: only another attempt has them
                first_does_long(self.agreement, lambda: take_over(holders, 0, None))
                raise SnapshotLostError(
                    f"the snapshot after step {snapshot.manifest.step} is not whole, and nothing is committed",
                    "The next attempt begins anew",
                ) from error
            return None  # what storage has is as good, only older
        committed = 0 if choice is None else choice.manifest.step
        return Restored(snapshot.manifest, committed=committed, from_memory=True, lines=snapshot.lines)

    def _newer_snapshot(self, holders: Sequence[Any], choice: Choice | None) -> FoundSnapshot | None:
        found = newest_snapshot(find_parts(holders), self.log.read())
        stored = (0, 0) if choice is None else (choice.manifest.attempt, choice.manifest.step)
        return found if found and (found.manifest.attempt, found.manifest.step) > stored else None

    def _from_store(self, choice: Choice | None) -> Restored | None:
        """Workers hash what they read.

        Only if one of them finds bytes that are not those committed, all candidates are read in full, so that the next
        choice is sound.
        """
        for is_verified in (False, True):
            if choice is None:
                return None
            try:
                self._load(self.store, choice.manifest)
            except CorruptCheckpointError:
                if is_verified:
                    raise
                choice = first_does_long(self.agreement, partial(self._choose, True))
                continue
            return Restored(choice.manifest, choice.rejected, committed=choice.manifest.step)
        raise AssertionError("the last round of the loop returns or raises")

    def _load(self, source: ShardSource, manifest: CheckpointManifest) -> None:
        load_state(source, manifest, self.training)

    def _choose(self, verify_bytes: bool) -> Choice | None:
        return newest_good(self.store, self.log.read(), verify_bytes)
