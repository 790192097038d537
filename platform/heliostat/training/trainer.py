"""A run on Ray Train: starts the workers of an attempt, waits, and turns what went wrong into one error.

Ray Train manages processes and process groups. Which checkpoint exists and where to continue is decided by the run's
own commit log, which Ray Train's record could contradict after a crash; so it is given metrics and no checkpoints.
"""

import signal
import tempfile
import uuid

from heliostat.config.pretrain import PretrainRecipe
from heliostat.errors import HeliostatError, TrainingFailedError
from heliostat.training.attempt import RunSpec, train_attempt
from heliostat.training.determinism import DETERMINISTIC_ENV
from heliostat.training.feed import KEEP_MEMORY_ENV

COLLECTIVE_TIMEOUT_S = 120
CPU_WORKER_ENV = {"DS_ACCELERATOR": "cpu", **KEEP_MEMORY_ENV}
"""Environment of workers without a GPU."""


def fit(spec: RunSpec, use_gpu: bool) -> None:
    """Run one attempt on the initialised Ray, to the run's last step; blocks.

    Raises:
        HeliostatError: the first error that a worker reported, or ``TrainingFailedError`` for any other failure.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    scaling = spec.recipe.scaling
    resources = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    with tempfile.TemporaryDirectory(prefix="heliostat-ray-") as scratch:
        trainer = TorchTrainer(
            train_attempt,
            train_loop_config={"spec": spec},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(num_workers=scaling.workers, use_gpu=use_gpu, resources_per_worker=resources),
            run_config=RunConfig(
                # A name of its own: under a known one Ray Train would restore its record of that run.
                name=f"{spec.recipe.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": _worker_env(spec.recipe, use_gpu)},
            ),
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except RayTrainingFailedError as error:
            raise _first_cause(error) from error
        except SystemExit as stop:  # Ray's own handler aborts the run, and then leaves as if all were well
            raise KeyboardInterrupt from stop
        finally:
            signal.signal(signal.SIGINT, on_interrupt)


def _worker_env(recipe: PretrainRecipe, use_gpu: bool) -> dict[str, str]:
    cpus = str(max(1, int(recipe.scaling.cpus_per_worker)))
    kernels = DETERMINISTIC_ENV if recipe.training.deterministic else {}
    return {**kernels, **({} if use_gpu else {**CPU_WORKER_ENV, "OMP_NUM_THREADS": cpus})}


def _first_cause(error: Exception) -> HeliostatError:
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [_unwrapped(failures[rank]) for rank in sorted(failures)] or [error]
    for cause in causes:
        if isinstance(cause, HeliostatError):
            return cause
    first = str(causes[0]).strip().splitlines() or [type(causes[0]).__name__]
    return TrainingFailedError(
        f"a training worker failed: {type(causes[0]).__name__}: {first[-1]}",
        "Run the same command again to resume from the last checkpoint; --debug shows the workers' traceback",
    )


def _unwrapped(error: BaseException) -> BaseException:
    """The exception that the train function raised, without the layers that carried it here."""
    seen: BaseException = error
    while not isinstance(seen, HeliostatError):
        inner = getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException):
            return seen
        seen = inner
    return seen
