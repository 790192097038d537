"""The workers of an attempt as the driver knows them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from heliostat.elastic.causes import Cause
from heliostat.elastic.signals import Pulse

_SPARE_STOP_S = 1.0


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of a group."""

    rank: int
    node_id: str
    pid: int
    call: Callable[..., Any]
    """``call(function, *arguments)`` runs a function in its process; gives Ray's reference to the result."""


class Group(Protocol):
    """The workers of an attempt."""

    @property
    def members(self) -> Sequence[Member]:
        """By rank."""


@dataclass(slots=True)
class Watched:
    """What is known of the attempt that runs."""

    members: Sequence[Member]
    began: float
    pulses: dict[int, Pulse] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    calls: dict[int, Any] = field(default_factory=dict)
    noticed: set[str] = field(default_factory=set)
    """Nodes that were announced to go."""
    stopping: Cause | None = None
    hung: dict[int, float] = field(default_factory=dict)
    """Workers that are to be ended because they hang, and for how many seconds they did when that was found."""
    unended: set[int] = field(default_factory=set)
    """Those of them that could not be ended yet."""
    end_again_at: float = 0.0
    named: set[int] = field(default_factory=set)

    @property
    def on_node(self) -> dict[str, int]:
        """Workers by node."""
        counts: dict[str, int] = {}
        for member in self.members:
            counts[member.node_id] = counts.get(member.node_id, 0) + 1
        return counts

    def ranks_on(self, nodes: set[str]) -> list[int]:
        """Workers on some nodes."""
        return [member.rank for member in self.members if member.node_id in nodes]


@dataclass(slots=True)
class Pace:
    """How long steps and checkpoints take; an attempt that is too young to say is taken for like the one before."""

    step_s: float = 0.0
    save_s: float = 0.0

    def learn(self, pulses: Iterable[Pulse]) -> None:
        """Take in what the workers of an attempt say."""
        heard = list(pulses)
        self.step_s = max((pulse.step_s for pulse in heard), default=0.0) or self.step_s
        self.save_s = max((pulse.save_s for pulse in heard), default=0.0) or self.save_s

    @property
    def stop_s(self) -> float:
        """How long before a deadline to stop, so that the last step is saved in time."""
        return _SPARE_STOP_S + 2 * self.step_s + 2 * self.save_s
