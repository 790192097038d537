"""How the slots of a step are spread over the workers that exist right now.

A slot is a fixed group of images whose losses are computed together. The number of slots belongs to the run; the number
of workers belongs to the moment. Nothing outside this file may turn one into the other.
"""

from dataclasses import dataclass

from heliostat.errors import TooManyWorkersError


@dataclass(frozen=True, slots=True)
class Turn:
    """One worker's work in one round of a step."""

    slot: int
    counts: bool
    """False for a round in which a worker has no slot left: it computes an earlier one again, with weight zero, so that
    all workers take part in the same collectives."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """The slots of a step over ``world_size`` workers."""

    slots: int
    world_size: int

    def __post_init__(self) -> None:
        if self.world_size > self.slots:
            raise TooManyWorkersError(
                f"{self.world_size} workers were asked for, but a step has only {self.slots} slots "
                "(global_batch / slot_batch)",
                f"Set scaling.workers to at most {self.slots}, or lower training.slot_batch",
            )

    @property
    def rounds(self) -> int:
        """Micro-steps that every worker runs per optimizer step."""
        return -(-self.slots // self.world_size)

    def slots_of(self, rank: int) -> list[int]:
        """The slots that one worker computes, in order; never empty."""
        return list(range(rank, self.slots, self.world_size))

    def turns_of(self, rank: int) -> list[Turn]:
        """What one worker does in each round."""
        mine = self.slots_of(rank)
        idle = self.rounds - len(mine)
        return [*(Turn(slot, counts=True) for slot in mine), *[Turn(mine[0], counts=False)] * idle]

    @property
    def loss_weight(self) -> float:
        """Factor on a slot's loss.

        Data parallelism averages gradients over workers and rounds; this undoes it, so that a step's gradient is the
        mean over its slots whatever the number of workers.
        """
        return self.world_size * self.rounds / self.slots
