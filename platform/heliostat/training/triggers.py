"""When a checkpoint is due: decided by every worker for itself, from what all of them know alike."""

from dataclasses import dataclass, fields
from typing import Self

from heliostat.training.collective import Agreement


@dataclass(frozen=True, slots=True)
class Vote:
    """What the workers know together between two steps: whether any of them says so."""

    waits: bool
    """Its images have not come."""
    failed: bool
    """What it did in the background went wrong."""
    is_saving: bool
    """It still writes the checkpoint before."""
    wanted: bool
    """It was asked for a checkpoint: by time, by a person, or because a node will go."""
    is_copying: bool
    """Its part of the last snapshot is not yet in other nodes' memory."""
    stopping: bool
    """It was told to end the attempt."""

    @classmethod
    def taken(cls, agreement: Agreement, mine: Self) -> Self:
        """All workers' votes as one; every worker calls it."""
        return cls(*agreement.any(*(getattr(mine, each.name) for each in fields(cls))))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to save now; or, if not, whether to do so as soon as the checkpoint before is written."""

    save: bool
    pending: bool


def due(vote: Vote, done: int, saved: int, pending: bool, every_steps: int) -> Decision:
    """What to do after a step.

    However often a checkpoint falls due while the one before is being written, one is made, of the first step after.

    Args:
        vote: Of all workers.
        done: Steps that are done.
        saved: Steps that were done when the last checkpoint was begun, or the run resumed.
        pending: The last decision's.
        every_steps: Steps between checkpoints.
    """
    if done <= saved:  # nothing is new: a wish waits for the next step
        return Decision(False, pending or vote.wanted)
    if not (pending or vote.wanted or done % every_steps == 0):
        return Decision(False, False)
    return Decision(not vote.is_saving, vote.is_saving)
