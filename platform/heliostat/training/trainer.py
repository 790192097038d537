"""A run on Ray Train: starts its attempts until the last step is done, and turns what went wrong into one error.

Ray Train manages processes and process groups. Which checkpoint exists and where to continue is decided by the run's
own commit log, which Ray Train's record could contradict after a crash; so it is given metrics and no checkpoints. How
many workers there are and what happens after a failure is ``heliostat.elastic``'s.
"""

import hashlib
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

from heliostat.config.training import TrainingRecipe
from heliostat.elastic.standby import StandbyKind, import_hook
from heliostat.elastic.supervisor import SupervisorSpec
from heliostat.errors import TrainingFailedError
from heliostat.storage import Store
from heliostat.storage.layout import run_store
from heliostat.training.attempt import RunSpec, train_attempt
from heliostat.training.determinism import DETERMINISTIC_ENV
from heliostat.training.feed import KEEP_MEMORY_ENV, feeder_env

COLLECTIVE_TIMEOUT_S = 120
CPU_WORKER_ENV = {"DS_ACCELERATOR": "cpu", **KEEP_MEMORY_ENV}
"""Environment of workers without a GPU."""


def fit(spec: RunSpec, use_gpu: bool, attempt: Callable[[dict[str, Any]], None] = train_attempt) -> None:
    """Run attempts on the initialised Ray until the run's last step is done; blocks.

    Args:
        spec: What every worker has to know.
        use_gpu: Whether each worker takes a GPU.
        attempt: What a worker does in an attempt.

    Raises:
        HeliostatError: why the run was given up: the first error that a worker reported, if that is the cause.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    from heliostat.elastic.ray_train import ElasticTrainer

    recipe, run_id = spec.recipe, run_id_of(spec.root, spec.recipe.name)
    resources = worker_resources(recipe, use_gpu)
    environment = _worker_env(recipe, use_gpu)
    with tempfile.TemporaryDirectory(prefix="heliostat-ray-") as scratch:
        trainer = ElasticTrainer(
            attempt,
            train_loop_config={"spec": spec},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=recipe.scaling.workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                # A name of its own: under a known one Ray Train would restore its record of that run.
                name=f"{recipe.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                worker_runtime_env={"env_vars": environment},
            ),
            spec=SupervisorSpec(
                run_id=run_id,
                store=run_store(spec.root, recipe.name),
                scaling=recipe.scaling,
                slots=recipe.training.slots,
                per_worker=resources,
                standby=_standby(recipe, environment),
                takes_snapshots=recipe.checkpoint.memory_every_steps > 0,
                storage_patience_s=recipe.streaming.patience_s,
                flush_interval_s=recipe.observe.flush_interval_s,
            ),
        )
        try:
            trainer.fit()
        except RayTrainingFailedError as error:
            raise TrainingFailedError(
                f"Ray Train failed: {str(error).strip().splitlines()[-1]}",
                "Run the same command again to resume from the last checkpoint; --debug shows the traceback",
            ) from error


def worker_resources(recipe: TrainingRecipe, use_gpu: bool) -> dict[str, float]:
    """Ray resources of one worker."""
    scaling = recipe.scaling
    gpu = {"GPU": 1.0} if use_gpu else {}
    own = {scaling.worker_resource: 1.0} if scaling.worker_resource is not None else {}
    return {"CPU": scaling.cpus_per_worker, **gpu, **own}


def run_id_of(root: Store, name: str) -> str:
    """Tells runs of one name under different roots apart, where they share a cluster."""
    return f"{name}-{hashlib.sha256(root.url.encode()).hexdigest()[:8]}"


def _standby(recipe: TrainingRecipe, environment: dict[str, str]) -> list[StandbyKind]:
    kinds = [StandbyKind(environment, 1, is_nested=False)]
    if recipe.streaming.crops_on == "trainer":
        of_feeder = {**environment, **feeder_env(environment)}
        kinds.append(StandbyKind(of_feeder, recipe.streaming.crop_processes, is_nested=True))
    return kinds


def _worker_env(recipe: TrainingRecipe, use_gpu: bool) -> dict[str, str]:
    cpus = str(max(1, int(recipe.scaling.cpus_per_worker)))
    kernels = DETERMINISTIC_ENV if recipe.training.deterministic else {}
    hook = import_hook("heliostat.training.warm_up.of_worker") if recipe.scaling.standby_after_s is not None else {}
    # DeepSpeed marks functions for torch's compiler, whose import takes seconds of a core at every start.
    compiler = {} if recipe.training.compile else {"TORCHDYNAMO_DISABLE": "1"}
    return {**hook, **kernels, **compiler, **({} if use_gpu else {**CPU_WORKER_ENV, "OMP_NUM_THREADS": cpus})}
