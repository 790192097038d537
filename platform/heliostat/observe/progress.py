"""One live view of work in progress: a bar with ETA on a terminal, a plain line every few seconds elsewhere.

`watch_run` follows a training run from outside, through the store, so the same view serves a run on this machine and
one on a cluster. `watch_items` shows a phase that counts things and has no steps, such as ingest.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from heliostat.observe.following import RunFollower
from heliostat.observe.goodput import Ledger
from heliostat.observe.status import RunStatus, duration, eta_s, run_details, run_line
from heliostat.storage import Store

LINE_INTERVAL_S = 5.0
"""Seconds between two plain lines, at least."""

_log = logging.getLogger(__name__)


class _View:
    """The bar on a terminal or the plain lines elsewhere; knows nothing of what it shows."""

    def __init__(self, console: Console, line_interval_s: float, description: str) -> None:
        self._console = console
        self._line_interval_s = line_interval_s
        self._last_line = ""
        self._last_line_at = -line_interval_s
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[details]}", markup=False, style="dim"),
                console=console,
                # Redirecting a piped standard output would send a command's results to the terminal.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(description, total=None, details="")
            self._bar.start()

    def show(self, description: str, done: int, total: int | None, details: str, line: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=description, completed=done, total=total, details=details)
        elif line != self._last_line and time.monotonic() - self._last_line_at >= self._line_interval_s:
            self._print(line)

    def close(self, line: str) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif line != self._last_line:
            self._print(line)

    def _print(self, line: str) -> None:
        # soft_wrap: a line of a log file must stay one line, however narrow rich believes the file to be
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line, self._last_line_at = line, time.monotonic()


class RunWatch:
    """Follows one run through its store in a background thread until it is stopped.

    A store that does not answer is asked again at the next poll: watching never disturbs what it watches.

    Args:
        store: The store of the run.
        total_steps: Steps of the whole run.
        console: Where to show it; standard error unless told otherwise, so that ``--json`` owns standard output.
        poll_interval_s: Seconds between looks at the store.
        line_interval_s: Seconds between plain lines, at least.
        publish: Told of the run as a whole after every look.
    """

    def __init__(
        self,
        store: Store,
        total_steps: int,
        console: Console | None = None,
        *,
        poll_interval_s: float = 1.0,
        line_interval_s: float = LINE_INTERVAL_S,
        publish: Callable[[Ledger, RunStatus], None] = lambda ledger, status: None,
    ) -> None:
        self._run = RunFollower(store, total_steps)
        self._publish = publish
        self._looks = 0
        self._is_live = False
        self._console = console or Console(stderr=True)
        self._poll_interval_s = poll_interval_s
        self._line_interval_s = line_interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch-run", daemon=True)

    def start(self) -> None:
        """Begin to watch and to show."""
        self._view = _View(self._console, self._line_interval_s, self.status.phase)
        self._thread.start()

    def stop(self) -> None:
        """Look a last time, show that, and leave the terminal as it was."""
        self._stopping.set()
        self._thread.join()
        self._look()
        self._view.close(run_line(self.status))

    def _follow(self) -> None:
        while not self._stopping.is_set():
            self._look()
            self._stopping.wait(self._poll_interval_s)

    @property
    def status(self) -> RunStatus:
        """How far the run is."""
        return self._run.status

    @property
    def ledger(self) -> Ledger:
        """Where its time went."""
        return self._run.ledger

    def _look(self) -> None:
        try:
            self._run.look()
        except Exception as error:  # whatever the store raises, the next poll may succeed
            _log.debug("cannot read the run directory: %s", error)
            return
        # What stood there at the first look may be of a driver that died long ago.
        self._is_live |= self._looks > 0 and self._run.has_news
        self._looks += 1
        self._run.account(time.time() if self._is_live else None)
        status = self.status
        self._publish(self.ledger, status)
        description = f"{status.phase} {status.step:,}/{status.total_steps:,}"
        self._view.show(description, status.step, status.total_steps, run_details(status), run_line(status))


@contextmanager
def watch_run(
    store: Store,
    total_steps: int,
    console: Console | None = None,
    *,
    line_interval_s: float = LINE_INTERVAL_S,
    publish: Callable[[Ledger, RunStatus], None] = lambda ledger, status: None,
) -> Iterator[RunWatch]:
    """Show a run while the block runs; see `RunWatch`."""
    watch = RunWatch(store, total_steps, console, line_interval_s=line_interval_s, publish=publish)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


class ItemProgress:
    """Progress of a phase that counts images instead of steps; see `watch_items`."""

    def __init__(self, phase: str, total: int | None, view: _View) -> None:
        self._phase = phase
        self._total = total
        self._view = view
        self._begun_s = time.monotonic()
        self._done = 0
        self._quarantined = 0

    def update(self, done: int, quarantined: int = 0, total: int | None = None) -> None:
        """Say how far it is: images done (the quarantined included), images quarantined, and the total once known."""
        self._done, self._quarantined = done, quarantined
        self._total = self._total if total is None else total
        of_total = "" if self._total is None else f"/{self._total:,}"
        self._view.show(f"{self._phase} {done:,}{of_total}", done, self._total, self._details(), self.line())

    def line(self) -> str:
        """The state as one plain line."""
        of_total = "" if self._total is None else f"/{self._total:,}"
        return f"{self._phase}: {self._done:,}{of_total} images · {self._details()}"

    def _details(self) -> str:
        elapsed_s = time.monotonic() - self._begun_s
        left_s = None if self._total is None else eta_s([(0.0, 0), (elapsed_s, self._done)], self._total)
        parts = [
            f"{self._done / elapsed_s:,.0f} images/s" if elapsed_s > 0 else None,
            f"{self._quarantined:,} quarantined" if self._quarantined else None,
            f"ETA {duration(left_s)}" if left_s else None,
        ]
        return " · ".join(part for part in parts if part)


@contextmanager
def watch_items(
    phase: str,
    total: int | None = None,
    console: Console | None = None,
    *,
    line_interval_s: float = LINE_INTERVAL_S,
) -> Iterator[ItemProgress]:
    """Show a phase without steps while the block runs; the block tells how far it is through `ItemProgress.update`."""
    view = _View(console or Console(stderr=True), line_interval_s, phase)
    progress = ItemProgress(phase, total, view)
    try:
        yield progress
    finally:
        view.close(progress.line())
