"""What a run on a cluster has left behind."""

from dataclasses import dataclass
from functools import cached_property

import torch
from faults.blame import DoneAt, outcomes
from faults.frame import Outcome
from faults.rig import unix

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import ledger
from heliostat.observe.interruptions import Interruption, interruptions
from heliostat.observe.metrics import StepMetrics, merged_curve
from heliostat.storage import Store


@dataclass(frozen=True)
class SpotRun:
    """What a run that ended has left behind."""

    store: Store
    manifest: CheckpointManifest
    lines: list[StepMetrics]
    events: list[Event]

    @property
    def steps(self) -> list[int]:
        """Whose metrics there are."""
        return [line.step for line in merged_curve(self.lines)]

    @property
    def step_ends(self) -> list[float]:
        """Unix time at the end of each line, those of steps that were lost included, in order."""
        return sorted(unix(line.time_utc) for line in self.lines)

    def of_type(self, kind: EventType) -> list[Event]:
        """Events of one kind, in order."""
        return sorted((event for event in self.events if event.type == kind), key=lambda event: event.time_utc)

    def causes(self) -> list[str]:
        """Of all interruptions, in order."""
        return [each.cause for each in self.interruptions]

    @cached_property
    def interruptions(self) -> list[Interruption]:
        """All of them, in order, as the platform itself tells them."""
        return interruptions(self.lines, self.events)

    def lost_steps(self) -> list[int]:
        """Steps that were done and had to be done again, for each interruption.

        Raises:
            AssertionError: The run does not tell it of one of them.
        """
        lost = [each.steps_lost for each in self.interruptions if each.steps_lost is not None]
        if len(lost) < len(self.interruptions):
            raise AssertionError(f"what was lost is not known of every interruption: {self.interruptions}")
        return lost

    def outcomes(self, done_at: DoneAt, is_exact: bool) -> list[Outcome]:
        """What became of each fault that was done to it, as ``blame.outcomes`` says."""
        return outcomes(self.interruptions, self.step_ends, done_at, is_exact)

    def goodput(self) -> float:
        """Share of the time in which steps were made that count."""
        return ledger(self.lines, self.events).goodput or 0.0

    def equals_bitwise(self, other: "SpotRun") -> bool:
        """Whether the same images in the same steps gave the same bits."""
        mine, theirs = self.state(), other.state()
        return (
            (self.manifest.digest_of_ids, self.steps) == (other.manifest.digest_of_ids, other.steps)
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of the last checkpoint."""
        reader = CheckpointReader(self.store, self.manifest)
        return {name: reader.read_full(*name.split("|")) for name in self.manifest.tensors}

    def distance(self, other: "SpotRun") -> float:
        """The largest relative L2 distance of a tensor of teachers and students.

        Without the key third of qkv biases: its true gradient is zero, so that Adam follows rounding alone.
        """
        mine, theirs = self.state(), other.state()
        worst = 0.0
        for name, tensor in mine.items():
            if not name.startswith(("master|", "teacher|")):
                continue
            a, b = tensor, theirs[name]
            if name.endswith("qkv.bias"):
                width = len(a) // 3
                a, b = (torch.cat([each[:width], each[2 * width :]]) for each in (a, b))
            worst = max(worst, float((a - b).norm() / b.norm().clamp_min(1e-12)))
        return worst
