"""What a checkpoint and a snapshot hold: the state of a run between two steps, as one worker has it."""

from collections.abc import Iterator
from dataclasses import dataclass

from heliostat.checkpoint.assembly import Draft
from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.log import Lease
from heliostat.objectives.step_state import StepState
from heliostat.training.ledger import SampleLedger
from heliostat.training.state import draft_of, owned_slices


@dataclass(frozen=True, slots=True)
class RunState:
    """Of an attempt."""

    training: StepState
    ledger: SampleLedger
    lease: Lease

    def draft(self, done: int) -> Draft:
        """What all workers know of the state after so many steps; all of them call it."""
        return draft_of(self.lease, done, self.ledger.exchange(), self.training)

    def owned_slices(self) -> Iterator[StateSlice]:
        """This worker's part of it: views."""
        return owned_slices(self.training)
