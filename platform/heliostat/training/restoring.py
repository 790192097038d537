"""Continuing from the newest checkpoint that is whole."""

from functools import partial

from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.verify import Choice, newest_good
from heliostat.errors import CorruptCheckpointError
from heliostat.objectives.engine import Engine
from heliostat.objectives.step import TrainingStep
from heliostat.storage import Store
from heliostat.training.collective import Agreement, first_does_long
from heliostat.training.state import load_state


def restore(
    store: Store, log: CommitLog, agreement: Agreement, engine: Engine, training: TrainingStep
) -> Choice | None:
    """Make engine and step what the newest good checkpoint holds, and say which it is; None before the first one.

    Workers hash what they read. Only if one of them finds bytes that are not those committed, all candidates are read
    in full, so that the next choice is sound.

    Raises:
        NoCheckpointError: there are committed checkpoints, but not one is usable.
        IncompatibleCheckpointError: the checkpoint is of another model.
        CorruptCheckpointError: bytes changed between being verified and being read.
    """
    for verify_bytes in (False, True):
        choice = first_does_long(agreement, partial(_choose, store, log, verify_bytes))
        if choice is None:
            return None
        try:
            load_state(store, choice.manifest, engine, training)
        except CorruptCheckpointError:
            if verify_bytes:
                raise
            continue
        return choice
    raise AssertionError("the last round of the loop returns or raises")


def _choose(store: Store, log: CommitLog, verify_bytes: bool) -> Choice | None:
    return newest_good(store, log.read(), verify_bytes)
