"""What an attempt tells of itself: events, and a line of numbers for steps."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import torch

from heliostat.config.keys import values_of
from heliostat.config.training import TrainingRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives.step_state import StepResult
from heliostat.observe.events import EventType, EventWriter
from heliostat.observe.metrics import MetricsWriter
from heliostat.observe.prometheus import RayMetrics
from heliostat.observe.redaction import redact, redact_value
from heliostat.observe.trackers import TRACKERS, BackgroundTracker, TrackedRun
from heliostat.storage import Store
from heliostat.storage.local import LocalStore
from heliostat.training.feed import StepInput
from heliostat.training.phases import PhaseClock
from heliostat.training.profiling import StepProfiler
from heliostat.training.speed import Speedometer


class Reporter:
    """Rank 0 writes for all workers: what it sees of a step is what the run did.

    Args:
        recipe: Of the run.
        store: The run's.
        attempt: Number of the attempt.
        rank: This worker.
        plan: How the workers share a step.
        device: Of this worker.
        stack: Closes what is opened here.
        flops_per_image: That the method needs.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        store: Store,
        attempt: int,
        rank: int,
        plan: SlotPlan,
        device: torch.device,
        stack: ExitStack,
        flops_per_image: float,
    ) -> None:
        self._recipe = recipe
        self._rank = rank
        flush_s = recipe.observe.flush_interval_s
        self._events = stack.enter_context(EventWriter(store, attempt, None, flush_s))
        self._metrics = stack.enter_context(MetricsWriter(store, attempt, flush_s))
        self.clock = PhaseClock(device)
        self.profiler = StepProfiler(recipe.observe.profile_steps if rank == 0 else None, store, attempt)
        stack.callback(self.profiler.close)
        self._trackers = self._new_trackers(store, stack) if rank == 0 else []
        precision = recipe.training.precision
        self._speed = Speedometer(flops_per_image, precision, plan.world_size, device) if rank == 0 else None
        self._published = RayMetrics(recipe.name) if rank == 0 else None
        self._steps_to_report = 0
        self._data_costs = Counter[str]()

    def event(self, kind: EventType, **fields: object) -> None:
        """Something that happened to the run."""
        if self._rank == 0:
            self._events.emit(kind, **fields)

    def event_of_worker(self, kind: EventType, **fields: object) -> None:
        """Something that happened to this worker."""
        self._events.emit(kind, worker=self._rank, **fields)

    def step(
        self, step: int, prepared: StepInput, result: StepResult, judged: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """A step that was made or left out; a line for every ``observe.log_every_steps`` of them.

        Args:
            step: Its index.
            prepared: What it took.
            result: What it gave.
            judged: What an evaluation after it found; then there is a line too.
        """
        self._steps_to_report += 1
        if (left_out := result.left_out) is not None:
            self.event(EventType.STEP_SKIPPED, step=step, reason=left_out.reason, sample_ids=list(left_out.sample_ids))
        for slot in prepared.slots:
            self._data_costs.update(
                data_bytes_read=slot.bytes_read, data_bytes_used=slot.bytes_used, data_retries=slot.retries
            )
        if (step + 1) % self._recipe.observe.log_every_steps and result.skipped is None and not judged:
            return
        seconds = self.clock.read()
        steps, self._steps_to_report = self._steps_to_report, 0
        if result.skipped is not None:  # its numbers are not finite: they belong to no curve
            reason, samples = result.skipped.reason, list(result.skipped.sample_ids)
            self.event(EventType.STEP_SKIPPED, step=step, reason=reason, sample_ids=samples)
            self._publish({**seconds, "steps_made": steps - 1, "steps_skipped": 1})
            if judged and self._rank == 0:
                self._metrics.write(step, **judged)
            return
        if self._speed is None:
            return
        images_per_s = self._recipe.training.global_batch * steps / max(sum(seconds.values()), 1e-9)
        line = {
            **result.terms,
            **judged,
            "lr": result.values.lr,
            "teacher_temperature": result.values.teacher_temperature,
            "ema_momentum": result.values.ema_momentum,
            **{f"gradient_norm_{name}": norm for name, norm in result.gradient_norms.items()},
            "images_per_s": images_per_s,
            "flops_per_image": self._speed.flops_per_image,
            "mfu": self._speed.mfu(images_per_s),
            "memory_peak_mib": self._speed.memory_peak_mib(),
            **self._data_costs,
            **seconds,
        }
        self._data_costs.clear()
        self._metrics.write(step, **line)
        for tracker in self._trackers:
            tracker.log(step, line)
        self._publish({**line, "steps_done": step + 1, "steps_made": steps})

    def unwritten_metrics(self) -> bytes:
        """Lines that are not in the store yet."""
        return self._metrics.unwritten() if self._rank == 0 else b""

    def adopt_metrics(self, lines: bytes) -> None:
        """Lines of the attempt that this one goes on from, which it had no time to write."""
        if self._rank == 0:
            self._metrics.adopt(lines)

    def flush(self) -> bool:
        """Write the lines that are buffered now; false when the store failed. Any thread may call it."""
        return self._metrics.flush()

    def _publish(self, values: dict[str, float]) -> None:
        if self._published is not None:
            self._published.publish(values)

    def _new_trackers(self, store: Store, stack: ExitStack) -> list[BackgroundTracker]:
        config = {key: redact_value(value) for key, value in values_of(self._recipe).items()}
        run = TrackedRun(self._recipe.name, redact(store.url), config, self._tracker_folder(store))
        return [
            stack.enter_context(BackgroundTracker(name, TRACKERS[name](), run, self._tracker_failed))
            for name in self._recipe.observe.trackers
        ]

    def _tracker_folder(self, store: Store) -> Path | None:
        chosen = self._recipe.observe.tensorboard_dir
        if chosen is not None:
            return Path(chosen) / self._recipe.name
        return Path(store.url) / "logs" / "tensorboard" if isinstance(store, LocalStore) else None

    def _tracker_failed(self, tracker: str, reason: str) -> None:
        self.event(EventType.TRACKER_FAILED, tracker=tracker, reason=reason)
