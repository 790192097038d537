"""What makes a run want a checkpoint besides its count of steps: time that has passed, and people who ask."""

import logging
import threading
import time
from contextlib import ExitStack

from heliostat.checkpoint.requests import answer, asked
from heliostat.errors import StorageError
from heliostat.storage import Store

_log = logging.getLogger(__name__)

_LOOK_S = 3.0


class Wishes:
    """Looks for requests in a thread of its own, so that training never waits for the store.

    Args:
        store: The run's.
        every_minutes: Minutes between checkpoints; None is no limit.
        stack: Ends the thread.
        look_s: Seconds between looks.
    """

    def __init__(self, store: Store, every_minutes: float | None, stack: ExitStack, look_s: float = _LOOK_S) -> None:
        self._store = store
        self._every_s = None if every_minutes is None else 60 * every_minutes
        self._look_s = look_s
        self._since_s = time.monotonic()
        self._asked: frozenset[str] = frozenset()
        self._taken: frozenset[str] = frozenset()
        self._closing = threading.Event()
        stack.callback(self._closing.set)
        threading.Thread(target=self._look, name="requests", daemon=True).start()

    def is_any(self) -> bool:
        """Whether a checkpoint is wanted now."""
        is_late = self._every_s is not None and time.monotonic() - self._since_s >= self._every_s
        return is_late or bool(self._asked - self._taken)

    def take(self) -> frozenset[str]:
        """A checkpoint is begun: the requests that its commit answers."""
        self._since_s = time.monotonic()
        taken = self._asked - self._taken
        self._taken |= taken
        return taken

    def answer(self, requests: frozenset[str]) -> None:
        """The checkpoint is committed."""
        try:
            answer(self._store, requests)
        except StorageError as error:  # the next checkpoint answers it once more
            self._taken -= requests
            _log.warning("the request for a checkpoint could not be removed: %s", error)

    def _look(self) -> None:
        while not self._closing.wait(self._look_s):
            try:
                self._asked = asked(self._store)
            except Exception as error:  # whatever it is, the next look may see
                _log.info("cannot look for requests: %s", error)
