"""When to change the number of workers: one pure function. What asks Ray for it is ``ray_train.py``."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What the cluster offers a run at one instant, in workers that it could hold."""

    healthy: int
    """On nodes that are alive, answer and are to stay; those that the run uses already count too."""
    drain_deadline_s: float = float("inf")
    """Seconds until the first node with workers of the run is taken away; negative once that time has passed."""
    quiet_s: float = 0.0
    """Seconds since ``healthy`` last changed."""
    room_s: float = 0.0
    """For how long there has been room for more workers than run, without a break, however ``healthy`` changed."""
    flaps: int = 0
    """Nodes that came and went again within minutes, of late."""
    longest_flap_s: float = 0.0
    """How long the one of them was there that stayed longest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run asks for, and how patient it is."""

    min_workers: int
    max_workers: int
    slots: int
    """Of a step: see ``useful_workers``."""
    settle_s: float = 1.0
    """After an interruption: how long the view must not have changed before workers are started."""
    grow_patience_s: float = 5.0
    """How long new capacity must have lasted before a running attempt is interrupted for it."""
    stop_s: float = 2.0
    """How long before a deadline an attempt is stopped, so that its last step is saved when the node goes."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on as before."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Too few workers: hold none, start again when capacity returns. Who has workers saves and stops them first."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Go on with so many workers. Who has workers saves and stops them first."""

    workers: int


Decision = Keep | Wait | Resize

_FLAP_FACTOR = 4.0
_OUTLIVES = 2.0
_LONGEST_PATIENCE_S = 600.0
_RESTLESS = 3.0
"""Among hundreds of nodes there is always one that comes or goes: after so many times the patience, room is room."""


def decide(view: ClusterView, running: int, limits: Limits) -> Decision:
    """Start with what is there, use a draining node to its last safe second, grow only into lasting capacity.

    Workers that are gone need no decision: their attempt is over when they are.

    Args:
        view: Of this instant.
        running: Workers that train now; 0 between attempts.
        limits: Of the run.
    """
    wanted = useful_workers(view.healthy, limits)
    if not running:
        return Resize(wanted) if wanted and _lasts(view, limits.settle_s) else Wait()
    if view.drain_deadline_s <= limits.stop_s:
        return Resize(wanted) if wanted else Wait()
    if wanted > running and _lasts(view, grow_patience_s(view, limits)):
        return Resize(wanted)
    return Keep()


def _lasts(view: ClusterView, patience_s: float) -> bool:
    return view.quiet_s >= patience_s or view.room_s >= _RESTLESS * patience_s


def useful_workers(healthy: int, limits: Limits) -> int:
    """As many workers as make a step shorter: 0 if they are too few, and the most that are allowed if there is room.

    In between, a worker more is only worth its price where it saves a round (``ceil(slots / workers)``): 5 workers take
    as many rounds over 8 slots as 4 do.
    """
    if healthy >= limits.max_workers:
        return limits.max_workers
    if healthy < limits.min_workers:
        return 0
    rounds = -(-limits.slots // healthy)
    return max(limits.min_workers, -(-limits.slots // rounds))


def grow_patience_s(view: ClusterView, limits: Limits) -> float:
    """Each node that came and went makes the next one wait longer: an interruption has to pay for itself.

    It has to stay twice as long as the others did, too: what goes after so many seconds is likely to do it again.
    """
    patience_s = limits.grow_patience_s * math.pow(_FLAP_FACTOR, min(view.flaps, 20))
    return min(max(patience_s, _OUTLIVES * view.longest_flap_s), _LONGEST_PATIENCE_S)
