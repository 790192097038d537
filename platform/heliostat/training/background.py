"""Work beside training, in a thread: one piece at a time, and its error is kept until somebody asks."""

import logging
import threading
from collections.abc import Callable

from heliostat.errors import HeliostatError
from heliostat.training.collective import as_user_error

_log = logging.getLogger(__name__)


class Background:
    """A place for one piece of work at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle = threading.Event()
        self._idle.set()
        self._failure: HeliostatError | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it works. Who wants to know how it ended asks this first, and ``failure`` then."""
        return not self._idle.is_set()

    @property
    def failure(self) -> HeliostatError | None:
        """The first error that ended a piece of work."""
        return self._failure

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece of work.

        Raises:
            RuntimeError: The piece before is not done.
        """
        if self.is_busy:
            raise RuntimeError(f"{self._name} is busy")
        self._idle.clear()
        # A daemon: a store that does not answer must not keep a process alive whose attempt has ended.
        threading.Thread(target=self._do, args=(work,), name=self._name, daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Wait until nothing is being done, but no longer than this."""
        self._idle.wait(timeout_s)

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # it must not vanish with its thread
            if not isinstance(error, HeliostatError):
                _log.exception("%s failed", self._name)
            self._failure = self._failure or as_user_error(error, self._name)
        finally:
            self._idle.set()
