"""Ray Train's controller with the supervisor's decisions in it: the only file that knows Ray Train's internals.

Ray 2.60 makes worker groups, process groups and their ends; what it would decide of itself (how many workers, whether
to try again) is decided here. ``tests/platform/elastic/test_ray_train.py`` fails when what is overridden changes.
"""

import asyncio
import logging
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, RayError, RayTaskError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from heliostat.elastic.causes import NodeFate, WorkerFailure, is_collateral
from heliostat.elastic.group import Member
from heliostat.elastic.signals import AttemptStoppedError
from heliostat.elastic.supervisor import Supervisor, SupervisorSpec
from heliostat.errors import HeliostatError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_POLL_S = 0.25
_GRACE_POLLS = 8
"""How often workers are looked at again when all that is known is that some miss the others."""
_CONTROLLER_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL_S),
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


class _TidyGroup(WorkerGroup):  # type: ignore[misc]
    """Ray Train's group; but a start that fails late leaves nothing behind, above all no resources that are taken."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self.has_started():  # Ray tidies up only what fails before
                with suppress(RayError):
                    self._worker_group_state.shutdown()
            raise


class ElasticController(TrainController):  # type: ignore[misc]  # Ray is not typed
    """The controller of one run; an actor.

    Args:
        spec: What the supervisor looks after.
        arguments: Ray Train's own.
    """

    worker_group_cls = _TidyGroup

    def __init__(self, spec: SupervisorSpec, **arguments: Any) -> None:
        os.environ.update(_CONTROLLER_ENV)
        # Workers get these variables besides their own.
        self._supervisor = Supervisor(spec, get_env_vars_to_propagate())
        config = arguments["scaling_policy"].scaling_config
        arguments["scaling_policy"] = _Scaling(config, self._supervisor)
        arguments["failure_policy"] = _Failures(self)
        arguments["callbacks"] = [*arguments["callbacks"], _GroupEvents(self._supervisor)]
        super().__init__(**arguments)

    async def _step(self) -> Any:
        if isinstance(self.get_state(), InitializingState | RestartingState | ReschedulingState):
            if self.get_worker_group() is not None:
                _looked(self._end_group)
            await asyncio.sleep(_POLL_S)  # Ray's loop has no pause between these
        return await super()._step()

    def _end_group(self) -> None:
        """Ray would keep what is left of it until it knows with what to go on, and then wait for those that do not
        answer; nothing of it is needed any more.
        """
        for worker in self.get_worker_group().get_workers():
            ray.kill(worker.actor)
        self._shutdown_worker_group()

    def failures(self, status: WorkerGroupPollStatus) -> list[WorkerFailure]:
        """How workers have ended. Of those whose node is gone Ray may only know, for long, that they do not answer."""
        workers = self.get_worker_group().get_workers()
        found = []
        for rank, worker in status.worker_statuses.items():
            node_id = workers[rank].metadata.node_id
            if worker.error is not None:
                found.append(_failure(self._supervisor, rank, node_id, worker.error))
            elif self._supervisor.is_gone(node_id):
                error = NodeDiedError(f"node {node_id[:12]} does not answer")
                found.append(WorkerFailure(rank, node_id, self._supervisor.fate(node_id), is_gone=True, error=error))
        return found

    def interrupted(self) -> bool:
        """Whether the supervisor wants to go on after workers failed.

        One worker's end makes the others fail too, and they may be quicker to say so: it is waited for, but not long.
        """
        group = self.get_worker_group()
        self._supervisor.probe_nodes()
        found = self.failures(group.get_latest_poll_status())
        for _ in range(_GRACE_POLLS):
            status = group.get_latest_poll_status()
            stopped = any(isinstance(each.error, AttemptStoppedError) for each in found)
            known = any(not is_collateral(each.error) or each.fate is NodeFate.DEAD for each in found)
            if status.finished or (known and not stopped):
                break
            time.sleep(_POLL_S)
            found = self.failures(group.poll_status(timeout=_POLL_S))
            self._supervisor.probe_nodes()
        return self._supervisor.interrupted(found)

    @property
    def supervisor(self) -> Supervisor:
        """Decides."""
        return self._supervisor

    def end(self, outcome: str) -> HeliostatError | None:
        """No more is to come; why the run was given up, if it was."""
        self._supervisor.close(outcome)
        return self._supervisor.verdict


def _looked(look: Callable[[], _T]) -> _T | None:
    """What comes of a look at the cluster; None if Ray did not answer. It is no reason to end anything: look again."""
    try:
        return look()
    except RayError as error:
        _log.warning("a look at the cluster failed: %s", error)
        return None


class _Scaling(ScalingPolicy):  # type: ignore[misc]
    """How many workers to start. Workers that train are told to stop, and then fail; Ray Train resizes nothing."""

    def __init__(self, config: ScalingConfig, supervisor: Supervisor) -> None:
        super().__init__(config)
        self._supervisor = supervisor

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._maybe_send_resource_request()
        workers = _looked(self._supervisor.decide_start)
        if workers is None:
            return NoopDecision()
        return ResizeDecision(workers, self.scaling_config._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        self._maybe_send_resource_request()
        _looked(self._supervisor.watch)
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return int(self.scaling_config.num_workers)

    def on_controller_start_worker_group(
        self, *, scaling_config: ScalingConfig, num_workers: int
    ) -> dict[str, str] | None:
        """Keep off nodes that will go, and off those that are gone though Ray does not know yet."""
        avoided = sorted(self._supervisor.avoided_nodes())
        return {"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else None


class _Failures(FailurePolicy):  # type: ignore[misc]
    """Whether to try again."""

    def __init__(self, controller: ElasticController) -> None:
        super().__init__(FailureConfig())
        self._controller = controller

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        return FailureDecision.RETRY if self._goes_on(training_failed_error) else FailureDecision.RAISE

    def _goes_on(self, error: TrainingFailedError) -> bool:
        supervisor = self._controller.supervisor
        if isinstance(error, WorkerGroupError):
            return self._controller.interrupted()
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        if isinstance(cause, HeliostatError):
            supervisor.gave_up(cause)
            return False
        # Looks at the cluster are guarded: what Ray raises itself, of whatever kind, it raises while it starts workers.
        if isinstance(cause, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError | RayError):
            is_timeout = isinstance(cause, WorkerGroupStartupTimeoutError)
            return supervisor.not_started(_first_line(cause.__cause__ or cause), is_timeout)
        return False


class _GroupEvents(WorkerGroupCallback):  # type: ignore[misc]
    """Tells the supervisor of groups."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._supervisor.starting(worker_group_context.num_workers)

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        self._supervisor.started(_TrainGroup(worker_group))


class _TrainGroup:
    """A group of Ray Train as the supervisor sees it."""

    def __init__(self, worker_group: WorkerGroup) -> None:
        self.members = [
            Member(rank, worker.metadata.node_id, worker.metadata.pid, worker.execute_async)
            for rank, worker in enumerate(worker_group.get_workers())
        ]


def _failure(supervisor: Supervisor, rank: int, node_id: str, error: Exception) -> WorkerFailure:
    is_gone = isinstance(error, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)
    text = error._traceback_str if isinstance(error, UserExceptionWithTraceback) else ""
    return WorkerFailure(rank, node_id, supervisor.fate(node_id), is_gone, unwrapped(error), text)


def unwrapped(error: BaseException) -> BaseException:
    """The exception that was raised in the first place, without the layers that carried it here."""
    seen: BaseException = error
    while not isinstance(seen, HeliostatError) or isinstance(seen, RayTaskError):  # Ray makes classes that are both
        inner = next(
            (
                found
                for name in ("_base_exc", "health_check_failure", "cause", "__cause__")
                if isinstance(found := getattr(seen, name, None), BaseException)
            ),
            None,
        )
        if inner is None:
            return seen
        seen = inner
    return seen


def _first_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[0]


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer with our controller.

    Args:
        spec: What the supervisor looks after.
        arguments: Ray Train's own.
    """

    def __init__(self, *arguments: Any, spec: SupervisorSpec, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._spec = spec

    def _create_default_callbacks(self) -> list[Any]:
        """Without that for Ray's datasets: none is given, and it would start a process for them all the same."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        controller = ray.remote(num_cpus=0, label_selector=here)(ElasticController).remote(self._spec, **arguments)
        try:
            ray.get(controller.run.remote())
        except BaseException:
            _abort(controller)
            raise
        result = ray.get(controller.get_result.remote())
        verdict = ray.get(controller.end.remote("failed" if result.error else "completed"))
        if verdict is not None:
            raise verdict from result.error
        return result


def _abort(controller: Any) -> None:
    """End a controller and its workers, whatever it is doing; it leaves when it has."""
    try:
        ray.get(controller.end.remote("interrupted"), timeout=10.0)
        ray.get(controller.abort.remote(), timeout=30.0)
    except ray.exceptions.RayError:
        return
