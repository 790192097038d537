"""The digest of all sample ids that the loss consumed, whatever the number of workers was.

It is a chain: the digest after a step is sha256(digest before ‖ digests of the step's slots in the order of the slots).
Workers keep the digests of their own slots and exchange them only when a checkpoint needs the chain.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from heliostat.config.training import TrainingConfig
from heliostat.data.samples import SampleSource
from heliostat.data.slots import SlotPlan
from heliostat.training.collective import gather_rows
from heliostat.training.feed import StepInput

EMPTY = bytes(32)
"""Before the first step."""
_DIGEST_BYTES = 32


def slot_digest(ids: Iterable[str]) -> bytes:
    """sha256 over the ids of a slot's samples in order."""
    return hashlib.sha256("".join(ids).encode()).digest()


def next_digest(previous: bytes, slot_digests: Iterable[bytes]) -> bytes:
    """The chain after one more step."""
    return hashlib.sha256(previous + b"".join(slot_digests)).digest()


def planned_digest(source: SampleSource, training: TrainingConfig) -> str:
    """The chain that a whole run has to end with, in hex: which samples are whose is arithmetic, no run is asked.

    A run whose last checkpoint has the same digest lost no sample and saw none twice in a pass over the data.

    Args:
        source: The pinned datasets; every image is read and compared with its id once more.
        training: Steps and batches.
    """
    digest = EMPTY
    for step in range(training.steps):
        first = step * training.global_batch
        ids = source.read(range(first, first + training.global_batch))["id"].to_pylist()
        slots = (ids[start : start + training.slot_batch] for start in range(0, len(ids), training.slot_batch))
        digest = next_digest(digest, map(slot_digest, slots))
    return digest.hex()


class SampleLedger:
    """One worker's part of the chain since the last exchange."""

    def __init__(self, plan: SlotPlan, digest: bytes) -> None:
        self._plan = plan
        self._digest = digest
        self._steps: list[bytes] = []

    def consumed(self, step: StepInput) -> None:
        """Note a step after its loss was computed."""
        self._steps.append(b"".join(slot_digest(slot.ids) for slot in step.slots))

    def exchange(self) -> bytes:
        """The chain up to now; all workers call it."""
        mine = np.frombuffer(b"".join(self._steps), np.uint8).reshape(-1, _DIGEST_BYTES)
        by_rank = gather_rows(torch.from_numpy(mine.copy()))
        world = self._plan.world_size
        counts = [len(self._plan.slots_of(rank)) for rank in range(world)]
        for step in range(len(self._steps)):
            rows = [
                by_rank[slot % world][step * counts[slot % world] + slot // world] for slot in range(self._plan.slots)
            ]
            self._digest = next_digest(self._digest, (row.numpy().tobytes() for row in rows))
        self._steps.clear()
        return self._digest
