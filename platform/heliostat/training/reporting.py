"""What an attempt tells of itself: events, and a line of numbers for steps."""

from collections import Counter
from contextlib import ExitStack

from heliostat.config.pretrain import PretrainRecipe
from heliostat.objectives.step import StepResult
from heliostat.observe.events import EventType, EventWriter
from heliostat.observe.metrics import MetricsWriter
from heliostat.storage import Store
from heliostat.training.feed import StepInput
from heliostat.training.phases import PhaseClock


class Reporter:
    """Rank 0 writes for all workers: what it sees of a step is what the run did.

    Args:
        recipe: Of the run.
        store: The run's.
        attempt: Number of the attempt.
        rank: This worker.
        stack: Closes what is opened here.
    """

    def __init__(self, recipe: PretrainRecipe, store: Store, attempt: int, rank: int, stack: ExitStack) -> None:
        self._recipe = recipe
        self._rank = rank
        flush_s = recipe.observe.flush_interval_s
        self._events = stack.enter_context(EventWriter(store, attempt, None, flush_s))
        self._metrics = stack.enter_context(MetricsWriter(store, attempt, flush_s))
        self.clock = PhaseClock()
        self._steps_to_report = 0
        self._data_costs = Counter[str]()

    def event(self, kind: EventType, **fields: object) -> None:
        """Something that happened to the run."""
        if self._rank == 0:
            self._events.emit(kind, **fields)

    def event_of_worker(self, kind: EventType, **fields: object) -> None:
        """Something that happened to this worker."""
        self._events.emit(kind, worker=self._rank, **fields)

    def step(self, step: int, prepared: StepInput, result: StepResult) -> None:
        """A step that was made or left out; a line for every ``observe.log_every_steps`` of them."""
        self._steps_to_report += 1
        for slot in prepared.slots:
            self._data_costs.update(
                data_bytes_read=slot.bytes_read, data_bytes_used=slot.bytes_used, data_retries=slot.retries
            )
        if (step + 1) % self._recipe.observe.log_every_steps and result.skipped is None:
            return
        seconds = self.clock.read()
        images, self._steps_to_report = self._recipe.training.global_batch * self._steps_to_report, 0
        if result.skipped is not None:  # its numbers are not finite: they belong to no curve
            reason, samples = result.skipped.reason, list(result.skipped.sample_ids)
            self.event(EventType.STEP_SKIPPED, step=step, reason=reason, sample_ids=samples)
            return
        if self._rank != 0:
            return
        self._metrics.write(
            step,
            **result.terms,
            lr=result.values.lr,
            teacher_temperature=result.values.teacher_temperature,
            ema_momentum=result.values.ema_momentum,
            **{f"gradient_norm_{name}": norm for name, norm in result.gradient_norms.items()},
            images_per_s=images / max(sum(seconds.values()), 1e-9),
            **self._data_costs,
            **seconds,
        )
        self._data_costs.clear()

    def flush(self) -> bool:
        """Write the lines that are buffered now; false when the store failed. Any thread may call it."""
        return self._metrics.flush()
