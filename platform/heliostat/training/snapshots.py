"""Snapshots of the training state in other nodes' memory, every few steps, while training goes on.

As ``saving.py`` for storage, but cheap enough to lose ten steps at most to a node that goes without a word. What goes
wrong here stops no training.
"""

import logging

from heliostat.checkpoint.assembly import Draft
from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.snapshot import Snapshot
from heliostat.checkpoint.writer import write_shard
from heliostat.elastic.holders import HeldTarget, Part, PartName
from heliostat.elastic.signals import MAILBOX
from heliostat.errors import HeliostatError
from heliostat.observe.events import EventType
from heliostat.training.background import Background
from heliostat.training.reporting import Reporter
from heliostat.training.run_state import RunState

_log = logging.getLogger(__name__)


class Snapshots:
    """Takes them; all workers call every method alike. They go where the driver's last assignment says.

    Args:
        every_steps: Steps between them.
        reporter: Told of what fails.
        state: What is kept.
        first_step: Steps that the attempt began with.
    """

    def __init__(
        self,
        every_steps: int,
        reporter: Reporter,
        state: RunState,
        first_step: int,
    ) -> None:
        self._every_steps = every_steps
        self._reporter = reporter
        self._state = state
        self._taken = first_step
        self._copy = Snapshot()
        self._background = Background("snapshots")

    @property
    def is_busy(self) -> bool:
        """Whether this worker's part of the last one is still on its way."""
        return self._background.is_busy

    def take_if_due(self, some_are_busy: bool, done: int) -> None:
        """Begin one if it is due after so many steps, and all workers' parts of the last are where they belong.

        So the last but one is whole whatever happens to this one.
        """
        if some_are_busy or done - self._taken < self._every_steps:
            return
        self._taken = done
        with self._reporter.clock.phase("checkpoint_s"):
            state = self._state
            draft = state.draft(done)
            copies = self._copy.take(state.owned_slices())
        lines = self._reporter.unwritten_metrics()
        self._background.start(lambda: self._put(draft, copies, lines))

    def _put(self, draft: Draft, copies: list[StateSlice], lines: bytes) -> None:
        """In the background."""
        rank = self._state.training.rank
        try:
            keepers = MAILBOX.assignment.keepers if MAILBOX.assignment is not None else ()
            target = HeldTarget(keepers, draft.attempt)
            record = write_shard(target, draft.folder, rank, copies)
            manifest = draft.manifest([record]).model_dump_json()
            name = PartName(draft.attempt, draft.step, rank)
            target.seal(Part(name, record.key, manifest, self._state.lease.nonce, lines))
            MAILBOX.lost_holder = False
        except HeliostatError as error:
            MAILBOX.lost_holder = True
            _log.warning("no snapshot after step %d: %s", draft.step, error)
            self._reporter.event_of_worker(EventType.SNAPSHOT_FAILED, step=draft.step, reason=str(error))
