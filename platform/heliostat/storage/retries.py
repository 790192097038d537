"""What the stores of a process had to try again: counted by cause, and said when it takes long.

The counts are for metrics. Of an outage that every thread of a process runs into, one thread speaks.
"""

import logging
import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

_log = logging.getLogger(__name__)

_lock = threading.Lock()
_counts: Counter[str] = Counter()
_stalled: Counter[str] = Counter()


def _start_anew() -> None:
    """A forked child counts its own, and must not wait for a lock that a thread of its parent held."""
    global _lock
    _lock = threading.Lock()
    _counts.clear()
    _stalled.clear()


os.register_at_fork(after_in_child=_start_anew)


def retry_counts() -> dict[str, int]:
    """How many requests this process has repeated so far, by S3's error code or the class of the exception."""
    with _lock:
        return dict(_counts)


def count_retry(cause: str) -> None:
    """One more request is about to be repeated."""
    with _lock:
        _counts[cause] += 1


def stall_begins(place: str, name: str, cause: str, silent_s: float, left_s: float) -> None:
    """An operation has got no answer for long; said unless another one at the same place is stalled too.

    Args:
        place: What fails together, a bucket.
        name: The object.
        cause: Of the last failure, as in ``retry_counts``.
        silent_s: Time since the operation began.
        left_s: Time until it gives up.
    """
    with _lock:
        _stalled[place] += 1
        is_first = _stalled[place] == 1
    if is_first:
        until = datetime.now(UTC) + timedelta(seconds=left_s)
        _log.warning(
            "%s has not answered for %.0f s (%s); trying on until %s UTC", name, silent_s, cause, f"{until:%H:%M:%S}"
        )


def stall_ends(place: str, silent_s: float, *, answered: bool) -> None:
    """A stalled operation got its answer, or gave up; said when no other one at the place is stalled any more."""
    with _lock:
        _stalled[place] -= 1
        is_last = _stalled[place] <= 0
        if is_last:
            del _stalled[place]
    if is_last and answered:
        _log.warning("%s answers again after %.0f s", place, silent_s)
