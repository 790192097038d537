"""A run in this process, without Ray and without DeepSpeed: for debuggers and notebooks.

The same step, order, draws, events, metrics and checkpoints as on a cluster: a run may be begun on one and gone on with
on the other.

>>> from heliostat.training.single_process import single_process_run  # doctest: +SKIP
>>> with single_process_run(spec) as worker:  # doctest: +SKIP
...     for step, result in worker.steps():
...         print(step, result.terms["loss"], worker.training.teacher.backbone.blocks[0].ls1.gamma.mean())
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import torch

from heliostat.config.training import TrainingConfig, TrainingRecipe
from heliostat.data.samples import Samples, SampleSource, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import direct_samples
from heliostat.errors import InvalidValueError
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import Network
from heliostat.training.attempt import AttemptWorker, RunSpec
from heliostat.training.feed import StepInput, prepare_slot


def device_of(accelerator: str) -> torch.device:
    """Where this process computes.

    Args:
        accelerator: As ``scaling.accelerator``.

    Raises:
        InvalidValueError: a GPU is asked for, and there is none.
    """
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if accelerator == "gpu" and not on_gpu:
        raise InvalidValueError("scaling.accelerator is gpu, but torch sees none", "Set scaling.accelerator to cpu")
    return torch.device("cuda" if on_gpu else "cpu")


class ThisProcess:
    """Where everything is computed."""

    def __init__(self, accelerator: str) -> None:
        self.device = device_of(accelerator)

    def new_engine(self, student: Network, training: TrainingConfig, plan: SlotPlan, stack: ExitStack) -> PlainEngine:
        """The plain engine."""
        return PlainEngine(student.to(self.device), training)

    def new_feed(
        self, recipe: TrainingRecipe, plan: SlotPlan, first_step: int, source: SampleSource, stack: ExitStack
    ) -> "DirectFeed":
        """A feed that is this process."""
        return stack.enter_context(closing(DirectFeed(recipe, plan, first_step, source, self.device.type == "cpu")))


class DirectFeed:
    """Makes each step when it is asked for."""

    def __init__(
        self, recipe: TrainingRecipe, plan: SlotPlan, first_step: int, source: SampleSource, photometric: bool
    ) -> None:
        self._recipe = recipe
        self._photometric = photometric
        self._steps = iter(range(first_step, recipe.training.steps))
        share = WorkerShare(plan, 0, recipe.training.slot_batch)
        self._samples = direct_samples(source, share, first_step, recipe.training.steps)

    def ready(self, timeout_s: float) -> bool:
        """It always is: ``take`` does the work."""
        return True

    def take(self) -> StepInput:
        """The next step."""
        return self._prepare(next(self._steps), next(self._samples))

    def close(self) -> None:
        """Stop reading."""
        self._samples.close()

    def _prepare(self, step: int, samples: Samples) -> StepInput:
        size = self._recipe.training.slot_batch
        parts = [samples.part(start, start + size) for start in range(0, len(samples.ids), size)]
        return StepInput(
            step,
            [
                prepare_slot(self._recipe, step, slot, part, photometric=self._photometric)
                for slot, part in enumerate(parts)
            ],
        )


@contextmanager
def single_process_run(spec: RunSpec) -> Iterator[AttemptWorker]:
    """An attempt of a run in this process; its ``steps()`` trains, from the newest checkpoint to the last step.

    The attempt's end is noted when the context ends, whatever the reason.
    """
    with ExitStack() as stack:
        worker = AttemptWorker(spec, ThisProcess(spec.recipe.scaling.accelerator), stack)
        try:
            yield worker
        except BaseException as error:
            worker.ended(str(error) or type(error).__name__)
            raise
        worker.ended("completed" if worker.is_finished else "left before its end")
