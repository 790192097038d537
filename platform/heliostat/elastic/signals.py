"""What the driver tells the workers of an attempt, and what they tell it: one mailbox in every worker's process.

Ray Train runs ``deliver``, ``assign`` and ``pulse`` in the process of a worker, beside the thread that trains.
"""

import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from heliostat.observe.segments import utc_now

RECENT_STEPS = 16
_UNUSUAL_STEPS = 3
"""At the start of an attempt: caches and memory pools fill."""


class Order(StrEnum):
    """What the driver asks for; carried out at the next step boundary, by all workers together."""

    CHECKPOINT = "checkpoint"
    """Commit the state as it is, and train on."""
    STOP = "stop"
    """Commit the state as it is, and end the attempt."""


class AttemptStoppedError(Exception):
    """An attempt ended on order, with its last step saved: not an error, but the only way to end all of Ray Train's."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a worker's snapshots go; actor handles of ``holders.Holder``."""

    keepers: tuple[Any, ...]
    """That keep this worker's part: its own node's and another one's."""
    holders: tuple[Any, ...]
    """All that may hold snapshots of the run."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a worker is."""

    attempt: int
    steps_done: int
    beat: int
    """Grows with everything that its training thread gets done."""
    silent_s: float
    """Seconds since it last grew."""
    has_trained: bool
    """Whether the attempt's first step is done: before that, imports and compilation take their time."""
    longest_s: float
    """The longest that it has been silent since the first steps of the attempt."""
    local_s: tuple[float, ...]
    """Seconds that it computed in each of the last ``RECENT_STEPS`` before it had to wait for another worker."""
    step_s: float
    """Recent mean of the seconds of a step."""
    save_s: float
    """Seconds from the beginning of the last checkpoint to its commit, or until now if it has been longer."""
    lost_holder: bool
    """Whether a snapshot could not be put where it belongs."""


@dataclass(slots=True)
class Mailbox:
    """Between the thread that trains and the driver."""

    assignment: Assignment | None = None
    orders: set[Order] = field(default_factory=set)
    attempt: int = 0
    steps_done: int = 0
    beats: int = 0
    beat_at: float = field(default_factory=time.monotonic)
    has_trained: bool = False
    longest_s: float = 0.0
    local_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    step_s: float = 0.0
    save_s: float = 0.0
    save_began: float | None = None
    """When the checkpoint was begun that is being written."""
    lost_holder: bool = False
    _step_began: float | None = None
    _arrived: bool = True
    _steps_seen: int = 0
    """Of the attempt."""
    received: deque[tuple[Order, str]] = field(default_factory=deque)
    """Orders that nobody has written down yet, and when they came."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt_begins(self, attempt: int) -> None:
        """Nothing has been done yet."""
        self.attempt = attempt
        self.has_trained = False
        self.steps_done = 0
        self.save_began = None
        self._steps_seen = 0
        self.local_s.clear()
        self.beat()

    def save_ends(self) -> None:
        """The checkpoint that was being written is committed."""
        if self.save_began is not None:
            self.save_s, self.save_began = time.monotonic() - self.save_began, None

    def steps_pause(self) -> None:
        """What comes before the next step, if there is one, may take its time: it is no hang."""
        self.has_trained = False
        self.beat()

    def beat(self) -> None:
        """The training thread has got something done."""
        now = time.monotonic()
        with self.lock:
            if self.has_trained and self._steps_seen >= _UNUSUAL_STEPS:
                self.longest_s = max(self.longest_s, now - self.beat_at)
            self.beats += 1
            self.beat_at = now

    def step_begins(self) -> None:
        """All workers have just agreed to begin a step."""
        self._step_began = time.monotonic()
        self._arrived = False

    def meets_others(self) -> None:
        """The training thread is about to exchange something with the other workers."""
        if not self._arrived and self._step_began is not None:
            self._arrived = True
            if self._steps_seen >= _UNUSUAL_STEPS:
                self.local_s.append(time.monotonic() - self._step_began)

    def step_ends(self, steps_done: int) -> None:
        """So many steps are done."""
        if self._step_began is not None and self._steps_seen >= _UNUSUAL_STEPS:
            self.step_s = _mean(self.step_s, time.monotonic() - self._step_began)
        self._steps_seen += 1
        self.beat()
        self.steps_done = steps_done
        self.has_trained = True

    def take(self, order: Order) -> bool:
        """Whether this is ordered; it is no longer, then."""
        if order not in self.orders:
            return False
        self.orders.discard(order)
        return True


def _mean(before: float, newest: float) -> float:
    """A running mean over about eight values."""
    return newest if not before else before + (newest - before) / 8


MAILBOX = Mailbox()
"""Of this process."""


def assign(assignment: Assignment) -> None:
    """Before training starts, and again when a holder was lost."""
    MAILBOX.assignment = assignment
    MAILBOX.lost_holder = False


def deliver(order: Order) -> None:
    """For the next step boundary."""
    MAILBOX.orders.add(order)
    MAILBOX.received.append((order, utc_now()))


def pulse() -> Pulse:
    """At any time."""
    box, save_began = MAILBOX, MAILBOX.save_began
    with box.lock:
        now = time.monotonic()
        silent_s = now - box.beat_at
        return Pulse(
            box.attempt,
            box.steps_done,
            box.beats,
            silent_s,
            box.has_trained,
            box.longest_s,
            tuple(box.local_s),
            box.step_s,
            max(box.save_s, 0.0 if save_began is None else now - save_began),
            box.lost_holder,
        )


def stacks() -> str:
    """What every thread of this process is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
