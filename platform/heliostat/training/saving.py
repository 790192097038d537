"""Saving the state of a run while training goes on.

Between two steps every worker copies its share of the state to host memory; that is all that training waits for. A
thread then writes the copy, and rank 0's waits for the other ranks' parts in the store, commits, and removes what is
not to be kept. Threads take part in no collective: what they have to say, an error above all, is said by their worker's
vote at the next step boundary.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.log import CommitLog, EndEntry
from heliostat.checkpoint.retention import Keep, retire
from heliostat.checkpoint.snapshot import Snapshot
from heliostat.config.training import TrainingRecipe
from heliostat.elastic.signals import MAILBOX, AttemptStoppedError, Order
from heliostat.errors import StorageError
from heliostat.objectives.step_state import StepResult
from heliostat.observe.events import EventType
from heliostat.storage import Store
from heliostat.training.background import Background
from heliostat.training.collective import Agreement, all_do
from heliostat.training.reporting import Reporter
from heliostat.training.run_state import RunState
from heliostat.training.triggers import Vote, due
from heliostat.training.wishes import Wishes

_log = logging.getLogger(__name__)

_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class _Save:
    """A checkpoint that is being written."""

    draft: Draft
    metrics: Mapping[str, float]
    requests: frozenset[str]
    begun_s: float
    blocked_s: float
    """Seconds for which training waited for it."""


class Saver:
    """Commits the state of a run; all workers call every method alike.

    Args:
        recipe: Of the run.
        store: The run's.
        reporter: Told of every commit.
        agreement: Of all workers.
        state: What is saved.
        saved: Steps that are done and committed already.
        stack: Ends what is begun here.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        store: Store,
        reporter: Reporter,
        agreement: Agreement,
        state: RunState,
        saved: int,
        stack: ExitStack,
    ) -> None:
        self._recipe = recipe
        # Threads may wait out any outage that the run may: nobody waits for them.
        self._store = store.patient(recipe.streaming.patience_s)
        self._log = CommitLog(self._store)
        self._lease = state.lease
        self._reporter = reporter
        self._agreement = agreement
        self._state = state
        self._saved, self._pending = saved, False
        self._metrics: Mapping[str, float] = {}
        self._snapshot = Snapshot()
        self._background = Background("saving")
        self._closing = threading.Event()
        stack.callback(self._closing.set)
        is_first = state.training.rank == 0
        self._wishes = Wishes(store, recipe.checkpoint.every_minutes, stack) if is_first else None

    def note(self, result: StepResult, judged: Mapping[str, float]) -> None:
        """Remember what a step reported, for a checkpoint of it; an evaluation is of the teacher after that step."""
        terms = self._metrics if result.skipped is not None else result.terms
        self._metrics = {**{name: terms[name] for name in result.terms if name in terms}, **judged}

    def vote(self, has_images: bool = True, is_copying: bool = False) -> Vote:
        """One exchange of all workers between two steps, or while they wait for images.

        Args:
            has_images: Whether this worker could begin a step.
            is_copying: Whether its part of the last snapshot is on its way.

        Raises:
            HeliostatError: what went wrong on a worker in the background, the same on all of them.
        """
        is_saving = self._background.is_busy  # before its failure: what is over has failed, or never will
        failed = self._background.failure is not None
        wanted = self._wishes is not None and (MAILBOX.take(Order.CHECKPOINT) or self._wishes.is_any())
        stopping = Order.STOP in MAILBOX.orders
        mine = Vote(not has_images, failed, is_saving, wanted, is_copying, stopping)
        vote = Vote.taken(self._agreement, mine)
        if vote.failed:
            all_do(self._raise_failure)
        return vote

    def save_if_due(self, vote: Vote, done: int) -> None:
        """Begin a checkpoint if it is time for one after so many steps. Training waits for the copy alone."""
        decision = due(vote, done, self._saved, self._pending, self._recipe.checkpoint.every_steps)
        self._pending = decision.pending
        if decision.save:
            with self._reporter.clock.phase("checkpoint_s"):
                self._begin(done)

    def finish(self) -> None:
        """Commit the state after the last step, and the end of the run; waits for both.

        Raises:
            FencedError: a newer attempt holds the lease.
            StorageError: the store failed for longer than ``streaming.patience_s``.
        """
        steps = self._recipe.training.steps
        self._settle()
        if self._saved < steps:
            self._begin(steps)
            self._settle()
        if self._state.training.rank == 0:
            end = EndEntry(attempt=self._lease.attempt, step=steps, outcome="completed")
            self._background.start(lambda: self._log.append(self._lease, end))
        self._settle()
        self._reporter.event(EventType.RUN_FINISHED, step=steps)

    def stop(self, done: int) -> None:
        """Commit the state after so many steps, and end the attempt on order; waits for the commit.

        Raises:
            AttemptStoppedError: always, if nothing goes wrong: Ray Train knows no other end before the last step.
        """
        self._settle()
        if self._saved < done:
            self._begin(done)
            self._settle()
        raise AttemptStoppedError(f"stopped on order after {done} steps")

    def _settle(self) -> None:
        while self.vote().is_saving:
            self._background.wait(_POLL_S)

    def _raise_failure(self) -> None:
        if self._background.failure is not None:
            raise self._background.failure

    def _begin(self, done: int) -> None:
        begun_s = time.monotonic()
        requests = frozenset[str]()
        if self._wishes is not None:
            requests = self._wishes.take()
            MAILBOX.save_began = begun_s
        draft = self._state.draft(done)
        copies = self._snapshot.take(self._state.owned_slices())
        self._saved = done
        save = _Save(draft, self._metrics, requests, begun_s, time.monotonic() - begun_s)
        self._background.start(lambda: self._write(save, copies))

    def _write(self, save: _Save, copies: list[StateSlice]) -> None:
        """In the background."""
        write_part(self._store, save.draft, self._state.training.rank, copies)
        if self._wishes is None:
            return
        self._flush_curve()
        manifest = assemble(self._store, self._log, self._lease, save.draft, save.metrics, self._closing.is_set)
        self._retire(save.metrics)
        self._wishes.answer(save.requests)
        MAILBOX.save_ends()
        self._reporter.event(
            EventType.CHECKPOINT_COMMITTED,
            step=manifest.step,
            size_bytes=manifest.size_bytes,
            blocked_s=round(save.blocked_s, 4),
            total_s=round(time.monotonic() - save.begun_s, 4),
        )

    def _flush_curve(self) -> None:
        """Before a commit: what a resumed run does not compute again must not be missing from its curve."""
        deadline_s = time.monotonic() + self._recipe.streaming.patience_s
        while not self._reporter.flush():
            if time.monotonic() > deadline_s or self._closing.wait(_POLL_S):
                _log.warning("the curve of the run may miss steps: its store does not take them")
                return

    def _retire(self, metrics: Mapping[str, float]) -> None:
        config = self._recipe.checkpoint
        if config.keep_best is not None and config.keep_best not in metrics:
            _log.warning(
                "checkpoint.keep_best is %s, but steps report %s",
                config.keep_best,
                ", ".join(sorted(metrics)) or "none",
            )
        keep = Keep(config.keep_last, config.keep_every_steps, config.keep_best, config.keep_best_mode)
        try:
            retire(self._store, self._log, self._lease, keep)
        except StorageError as error:  # the checkpoint is committed; the old one goes next time
            _log.warning("an old checkpoint could not be removed: %s", error)
