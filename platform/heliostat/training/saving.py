"""When training state is committed, and how."""

import logging
import time

from heliostat.checkpoint.log import CommitLog, EndEntry, Lease
from heliostat.checkpoint.retention import retire
from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import StorageError
from heliostat.models.weights.runs import LOCK_KEY
from heliostat.objectives.engine import Engine
from heliostat.objectives.step import TrainingStep
from heliostat.observe.events import EventType
from heliostat.storage import Store
from heliostat.training.collective import Agreement, first_does
from heliostat.training.ledger import SampleLedger
from heliostat.training.reporting import Reporter
from heliostat.training.state import save_state

_log = logging.getLogger(__name__)

_POLL_S = 5.0


class Saver:
    """Commits the state of a run; all workers call every method alike.

    Args:
        recipe: Of the run.
        store: The run's, which waits out short failures.
        log: The run's commit log.
        lease: Of this attempt.
        reporter: Told of every commit.
    """

    def __init__(self, recipe: PretrainRecipe, store: Store, log: CommitLog, lease: Lease, reporter: Reporter) -> None:
        self._recipe = recipe
        self._store = store
        self._log = log
        self._lease = lease
        self._reporter = reporter
        self._agreement = Agreement()

    def is_due(self, done: int) -> bool:
        """Whether the state is to be saved now that so many steps are done."""
        return done % self._recipe.checkpoint.every_steps == 0 or done == self._recipe.training.steps

    def save(self, done: int, ledger: SampleLedger, engine: Engine, training: TrainingStep) -> None:
        """Commit the state after so many steps.

        Raises:
            FencedError: a newer attempt holds the lease.
            StorageError: the store failed for longer than it is waited for.
        """
        self._wait_for_store()
        # Before the commit: what a resumed run does not compute again must not be missing from its curve.
        self._reporter.flush()
        manifest = save_state(self._store, self._log, self._lease, done, ledger.exchange(), engine, training)
        first_does(self._retire)
        self._reporter.event(EventType.CHECKPOINT_COMMITTED, step=done, size_bytes=manifest.size_bytes)

    def finish(self) -> None:
        """Note that the run has come to its end."""
        steps = self._recipe.training.steps
        first_does(
            lambda: self._log.append(
                self._lease, EndEntry(attempt=self._lease.attempt, step=steps, outcome="completed")
            )
        )
        self._reporter.event(EventType.RUN_FINISHED, step=steps)

    def _wait_for_store(self) -> None:
        """Wait out an outage before a commit, which gives up earlier: others wait for it in collectives."""
        deadline_s = time.monotonic() + self._recipe.streaming.patience_s
        while not self._agreement.all_true(self._store_answers() or time.monotonic() > deadline_s):
            time.sleep(_POLL_S)

    def _store_answers(self) -> bool:
        try:
            self._store.patient(_POLL_S).exists(LOCK_KEY)
        except StorageError:
            return False
        return True

    def _retire(self) -> None:
        try:
            retire(self._store, self._log, self._lease, self._recipe.checkpoint.keep_last)
        except StorageError as error:  # the checkpoint is committed; the old one goes next time
            _log.warning("an old checkpoint could not be removed: %s", error)
