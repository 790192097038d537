"""What is done to a run on a cluster, and when: a line per fault, as text or drawn from a seed."""

import random
import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can be done."""

    KILL_RANK = "kill rank"
    """SIGKILL to a training worker."""
    STOP_RANK = "stop rank"
    """SIGSTOP to a training worker: it hangs."""
    KILL_NODE = "kill node of rank"
    """The node vanishes."""
    DRAIN_NODE = "drain node of rank"
    """The node is announced to go after so many seconds, and goes then."""
    TAKE_EARLY = "take node early of rank"
    """It is announced to go in two minutes, and goes after so many seconds."""
    FALSE_ALARM = "false alarm on node of rank"
    """It is announced to go after so many seconds, and stays."""
    ADD_NODE = "add node"


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of a plan."""

    step: int
    """Of the run, at which it is done."""
    kind: Kind
    rank: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        of_rank = "" if self.kind is Kind.ADD_NODE else f" {self.rank}"
        after = f" after {self.seconds:g} s" if self.seconds else ""
        return f"at step {self.step} {self.kind}{of_rank}{after}"

    @property
    def interrupts(self) -> bool:
        """Whether the run has to begin another attempt for it."""
        return self.kind is not Kind.ADD_NODE

    @property
    def takes_node(self) -> bool:
        """Whether a node goes before the run could leave it."""
        return self.kind in (Kind.KILL_NODE, Kind.TAKE_EARLY)

    @property
    def is_announced(self) -> bool:
        """Whether there is time to save every step."""
        return self.kind in (Kind.DRAIN_NODE, Kind.FALSE_ALARM, Kind.ADD_NODE)


_LINE = re.compile(
    rf"at step (?P<step>\d+) (?P<kind>{'|'.join(sorted(Kind, key=len, reverse=True))})"
    r"( (?P<rank>\d+))?( after (?P<seconds>[\d.]+) s)?"
)


def parse(text: str) -> list[Fault]:
    """The faults of a plan, ordered by step.

    Raises:
        ValueError: a line says nothing that can be done.
    """
    faults = []
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r} is no fault; an example: at step 37 kill rank 2")
        faults.append(
            Fault(int(match["step"]), Kind(match["kind"]), int(match["rank"] or 0), float(match["seconds"] or 0))
        )
    return sorted(faults, key=lambda fault: fault.step)


def random_plan(rng: random.Random, faults: int, first: int, apart: int, ranks: int) -> list[Fault]:
    """So many faults, far enough apart that each is seen for itself; a node that goes is replaced before the next.

    Args:
        rng: Seeded.
        faults: Nodes that come in place of others are none.
        first: Step of the first one.
        apart: Steps between two, at least.
        ranks: Workers at the beginning.
    """
    plan: list[Fault] = []
    step = first
    kinds = [kind for kind in Kind if kind is not Kind.ADD_NODE]
    weights = [1 if kind is Kind.STOP_RANK else 3 for kind in kinds]  # a hang takes its time to be seen
    for _ in range(faults):
        kind = rng.choices(kinds, weights)[0]
        seconds = 0.0
        if kind in (Kind.DRAIN_NODE, Kind.FALSE_ALARM):
            seconds = round(rng.uniform(5, 10), 1)
        elif kind is Kind.TAKE_EARLY:
            seconds = round(rng.uniform(0.5, 2), 1)
        plan.append(Fault(step, kind, rng.randrange(ranks), seconds))
        step += apart + rng.randrange(apart)
        if kind not in (Kind.KILL_RANK, Kind.STOP_RANK):
            plan.append(Fault(step, Kind.ADD_NODE))
            step += apart + rng.randrange(apart)
    return plan
