"""What a run on a cluster has left behind, and what that says of the faults that it met."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from faults.frame import Outcome, seconds_to_recover
from faults.plan import Fault
from faults.rig import unix

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.observe.events import Event, EventType
from heliostat.observe.goodput import ledger
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
        return [event.fields["cause"] for event in self.of_type(EventType.INTERRUPTED)]

    def lost_steps(self) -> list[int]:
        """Steps that were done and had to be done again, for each interruption."""
        resumed = self.of_type(EventType.RESUMED)
        lost = []
        for event in self.of_type(EventType.INTERRUPTED):
            after = [each for each in resumed if each.time_utc > event.time_utc]
            done = max((line.step + 1 for line in self.lines if line.time_utc <= event.time_utc), default=0)
            done = max(done, event.fields["step"])
            lost.append(done - (after[0].fields["step"] if after else done))
        return lost

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

    def distance(self, other: "SpotRun", width: int) -> float:
        """The largest relative L2 distance of a tensor of teacher and student.

        Without the key third of qkv biases: its true gradient is zero, so that Adam follows rounding alone.
        """
        mine, theirs = self.state(), other.state()
        worst = 0.0
        for name, tensor in mine.items():
            if not name.startswith(("master|", "teacher|")):
                continue
            a, b = tensor, theirs[name]
            if name.endswith("qkv.bias"):
                a, b = (torch.cat([each[:width], each[2 * width :]]) for each in (a, b))
            worst = max(worst, float((a - b).norm() / b.norm().clamp_min(1e-12)))
        return worst


def outcomes(run: SpotRun, done_at: Sequence[tuple[Fault, float]], exact: bool) -> list[Outcome]:
    """What became of each fault that was done to one run; nodes that were added are no faults.

    Args:
        run: As it ended.
        done_at: What was done, and in Unix time when.
        exact: Whether it ended as if nothing had been done.
    """
    interrupted = run.of_type(EventType.INTERRUPTED)
    lost = run.lost_steps()
    faults = [(fault, at) for fault, at in done_at if fault.interrupts]
    unexpected = [event for event in interrupted if event.fields["cause"] != "resize"]
    found = []
    for number, (fault, at) in enumerate(faults):
        until = faults[number + 1][1] if number + 1 < len(faults) else float("inf")
        mine = [
            index
            for index, event in enumerate(interrupted)
            if at <= unix(event.time_utc) < until and event in unexpected
        ]
        detect = min((unix(interrupted[index].time_utc) - at for index in mine), default=None)
        # What was announced is planned around: it harms from the moment when the attempt is stopped.
        since = unix(interrupted[mine[0]].time_utc) if mine and fault.is_announced else at
        found.append(
            Outcome(
                fault=str(fault),
                survived=exact,
                lost=0 if exact else None,
                repeated=0 if exact else None,
                steps_lost=sum(lost[index] for index in mine),
                detect_s=None if detect is None else round(detect, 1),
                recover_s=_recovered_s(run, [unix(interrupted[index].time_utc) for index in mine], since, until),
                false_restarts=max(0, len(unexpected) - len(faults)) if number == 0 else 0,
                note="" if exact else "another result than the undisturbed run",
            )
        )
    return found


def _recovered_s(run: SpotRun, stopped_at: Sequence[float], since: float, until: float) -> float | None:
    """Seconds until the first step after the last of some interruptions."""
    if not stopped_at:
        return seconds_to_recover(run.step_ends, since, until)
    return next((end - since for end in run.step_ends if end > max(stopped_at)), None)
