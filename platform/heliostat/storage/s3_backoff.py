"""How long to wait before an operation on S3 is tried again, and when to give up."""

import random
import time
from types import TracebackType
from typing import Self

from stamina.instrumentation import set_on_retry_hooks

from heliostat.storage.retries import count_retry, stall_begins, stall_ends
from heliostat.storage.s3_errors import Remedy, reason_of, remedy_of

# A user sees the error that remains, in one line, or one warning of a long outage, and not a line for each attempt.
set_on_retry_hooks([])

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 4.0
STALL_S = 10.0
"""After so long without an answer, an operation that tries on says so."""
_DOUBLINGS = 10


class Backoff:
    """The hook that stamina asks after each failure of one operation: waits double up to a limit, half by chance.

    Chance takes part at the limit too (stamina's own waits are all alike there), or workers that were refused together
    would come back together. Used as a context around the operation, which tells how a long stall ended.

    Args:
        budget_s: No attempt begins later than this after the first one, in seconds.
        place: What fails together with the object, for messages: ``s3://bucket``.
        name: The object, for messages.
    """

    def __init__(self, budget_s: float, place: str, name: str) -> None:
        self._started = time.monotonic()
        self._budget_s = budget_s
        self._place = place
        self._name = name
        self._failures = 0
        self._renewed = False
        self._stalled = False

    def __call__(self, error: Exception) -> bool | float:
        """Seconds to wait before the next attempt, or False to let the error through."""
        remedy = remedy_of(error)
        if remedy is Remedy.NONE or (remedy is Remedy.RENEW_ONCE and self._renewed):
            return False
        self._renewed = self._renewed or remedy is Remedy.RENEW_ONCE
        longest = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, _DOUBLINGS))
        wait_s = random.uniform(longest / 2, longest)
        silent_s = time.monotonic() - self._started
        if silent_s + wait_s > self._budget_s:
            return False
        self._failures += 1
        count_retry(reason_of(error))
        if silent_s >= STALL_S and not self._stalled:
            self._stalled = True
            stall_begins(self._place, self._name, reason_of(error), silent_s, self._budget_s - silent_s)
        return wait_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stalled:
            answered = error is None or remedy_of(error) is Remedy.NONE
            stall_ends(self._place, time.monotonic() - self._started, answered=answered)
