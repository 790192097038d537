"""How long to wait before an operation on S3 is tried again, and when to give up."""

import random
import time

from stamina.instrumentation import set_on_retry_hooks

from heliostat.storage.s3_errors import is_transient

# A user sees the error that remains, in one line, and not a line of log for each attempt.
set_on_retry_hooks([])

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 4.0
_DOUBLINGS = 10


class Backoff:
    """The hook that stamina asks after each failure of one operation: waits double up to a limit, half by chance.

    Chance takes part at the limit too (stamina's own waits are all alike there), or workers that were refused together
    would come back together.

    Args:
        budget_s: No attempt begins later than this after the first one, in seconds.
    """

    def __init__(self, budget_s: float) -> None:
        self._deadline = time.monotonic() + budget_s
        self._failures = 0

    def __call__(self, error: Exception) -> bool | float:
        """Seconds to wait before the next attempt, or False to let the error through."""
        if not is_transient(error):
            return False
        longest = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, _DOUBLINGS))
        self._failures += 1
        wait_s = random.uniform(longest / 2, longest)
        return wait_s if time.monotonic() + wait_s <= self._deadline else False
