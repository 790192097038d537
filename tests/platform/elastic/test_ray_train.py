"""What ``ray_train.py`` relies on in Ray Train, which promises none of it: fails when another version is installed."""

import hashlib
import inspect
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RayTaskError,
    RpcError,
    RuntimeEnvSetupError,
)
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import exceptions
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupPollStatus
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from heliostat.elastic.causes import Cause, NodeFate, classify
from heliostat.elastic.ray_train import ElasticController, _Failures, _Scaling, _TidyGroup, unwrapped
from heliostat.errors import FencedError, HeliostatError, PreemptedError

INTERNALS: dict[str, Any] = {
    "the states that the loop pauses in": TrainController._step,
    "what a controller is made with": TrainController.__init__,
    "where errors of a start and of decisions go": TrainController.run,
    "which decisions to try again are heeded": TrainController._get_retry_state,
    "where label selectors come from": TrainController._start_worker_group,
    "how a group is ended": TrainController._shutdown_worker_group,
    "how a run is aborted": TrainController.abort,
    "what comes out": TrainController.get_result,
    "decisions on workers": ScalingPolicy,
    "decisions after failures": FailurePolicy,
    "the hook that selects nodes": ControllerCallback.on_controller_start_worker_group,
    "the hook before a group": WorkerGroupCallback.before_worker_group_start,
    "the hook after a group": WorkerGroupCallback.after_worker_group_start,
    "what times out at a start": WorkerGroup._start_impl,
    "what a failed start leaves behind": WorkerGroup._start,
    "how workers are polled": WorkerGroup.poll_status,
    "what is known of workers": WorkerGroupPollStatus,
    "which callbacks there are": TorchTrainer._create_default_callbacks,
    "what our start of a controller replaces": TorchTrainer._initialize_and_run_controller,
    "variables of workers": get_env_vars_to_propagate,
    "an error of a worker's code": exceptions.UserExceptionWithTraceback,
    "a worker that has died": exceptions.WorkerHealthCheckFailedError,
    "a worker that does not answer": exceptions.WorkerHealthCheckTimeoutError,
    "a start that took too long": exceptions.WorkerGroupStartupTimeoutError,
    "a start that failed": exceptions.WorkerGroupStartupFailedError,
    "an error of the controller": ControllerError.__init__,
    "an error of workers": WorkerGroupError.__init__,
}
"""By what ``ray_train.py`` has to do with them."""
SHA256 = {
    "the states that the loop pauses in": "0a500d496e95197c24afd80eb5f7a9b568cbca64bddfd8f4d33593a1db8c53f6",
    "what a controller is made with": "b631a49d50b11fd30380327558cf3943562d6c398eb9f81a3c96daf514f078f0",
    "where errors of a start and of decisions go": "356ad0bf004973a044e816842d2fb7f78017320785d6372346382527da1faa07",
    "which decisions to try again are heeded": "5c64fa93608821f31229dcd90ebe894b0e17a44f3af180a36d5f0053fe8f90b5",
    "where label selectors come from": "4cd5f350d092addc10cd1f96152770ba3e4c36cb870414acd4bcdb5fecaa91bf",
    "how a group is ended": "a66d87e31baf5850b460a5a508843649aec1f1e850f26a9d5d1a00828a75f96f",
    "how a run is aborted": "811b5b0144f81e434947c3c6c8cea00619238917166d76eb7f824c6650c70186",
    "what comes out": "f5e946bb2cf08e8208e18eeca302b05c625b5c41a23118cc8b01b9d95af2e258",
    "decisions on workers": "4e69c18ba79c4efabcc5981bebba3c83dd2fd6346e1fa89062fdeed99f8bc3d4",
    "decisions after failures": "ff0fc584c16e6781fd927d8d10646a25e081a9c642198645bc37f193ed472971",
    "the hook that selects nodes": "afd3468b5795bb0d4861582fb7e9c56511e8ac0a831364f79dc73bd23efeb52d",
    "the hook before a group": "819c30140d34dcbb9086c0a72a2eede27befea75d387e87c893df8a8b33bbe87",
    "the hook after a group": "fd47f1c8eb1cf7581f4c3d483d12714c14d1ab3b8afeec14d65216694797cc15",
    "what times out at a start": "1f4c2b9acf4cc8d884da8335e18c7312dca4d5779bd51b2f3aaac5a1f9ba0be8",
    "what a failed start leaves behind": "3d300069da85547d0d945cf81af1f61314d23f32e214af7108ceb8fd0eebd31b",
    "how workers are polled": "c349bde66237b1f59fceab27d0684dd07828c5a8a22a5537299e11f88089f899",
    "what is known of workers": "033ef1385e929fe217297c0feceea07784984dff26505ddebd6f90721b2991f4",
    "which callbacks there are": "9148f79c7a2bbb5c61714e941805f92bd3f52495bec4d863cf2b4d6f1f24d3f5",
    "what our start of a controller replaces": "ea57ec4498323973ffa0e70ad9c03641465b32b420381e791abd5fa8082d09e8",
    "variables of workers": "ba49c331f14cb9575fc8596c4c32ecbb9385a3c045dd314407a95db50ba8f2ee",
    "an error of a worker's code": "302ab64181ba08f868b439b74d9595441188e69736912681bd7f12cb31349a98",
    "a worker that has died": "01a59b65f66dba4323e640b6bacaa1321ed938cdff10a4d6e4ed103074180c92",
    "a worker that does not answer": "ecd58916d76d4988e3fc8b5f97debc93886de968c5cd6165e7e43cf5199c0e47",
    "a start that took too long": "42a3dc53c46c64ad947339b7fdf7b207349cdd323be3d94856159aca655a1f43",
    "a start that failed": "7c8494743912d24eef734f995012c936e5e040735614a7325d09b68b9a9790c7",
    "an error of the controller": "0b6be2880daf81ee544bb156f1163f3a71b054d886217fe6ecc0bf7fdcd1f53a",
    "an error of workers": "4335c19c6139f4a9a3dcb19bf012d3cc51b7c8e6ce5e5b16d5b7309f701d9c72",
}


def test_version__is_the_one_that_this_was_written_for() -> None:
    assert ray.__version__ == "2.60.0", "read ray_train.py beside the new Ray Train; then set version and hashes here"


@pytest.mark.parametrize("what", INTERNALS)
def test_internals__are_what_they_were(what: str) -> None:
    thing = INTERNALS[what]
    found = hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()
    assert found == SHA256[what], (
        f"{thing.__module__}.{thing.__qualname__} of Ray {ray.__version__} is another one ({what}): compare it with "
        f"that of Ray 2.60.0, look at its use in ray_train.py, run tests/faults, and only then set the hash here"
    )


MINE = FencedError("attempt 2 has taken over", "Stop")
BUG = ValueError("bad shape")


def raised_from(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def of_task(error: Exception) -> BaseException:
    """As ``ray.get`` gives back what a call of an actor raised."""
    returned: BaseException = RayTaskError("Actor.call", "traceback", error).as_instanceof_cause()
    return returned


def of_user(error: BaseException) -> exceptions.UserExceptionWithTraceback:
    return exceptions.UserExceptionWithTraceback(error, "traceback")


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (BUG, BUG),
        (MINE, MINE),
        (of_user(BUG), BUG),
        (of_user(MINE), MINE),
        (of_task(BUG), BUG),
        (of_user(of_task(MINE)), MINE),
        (raised_from(RuntimeError("outer"), raised_from(RuntimeError("inner"), BUG)), BUG),
        (of_user(raised_from(FencedError("the last word", "Stop"), BUG)), "the last word"),  # ours need no explanation
        (exceptions.WorkerHealthCheckFailedError("worker 1", of_task(BUG)), BUG),
    ],
)
def test_unwrapped__is_what_was_raised_first(error: BaseException, first: BaseException | str) -> None:
    found = unwrapped(error)
    assert found is first or (isinstance(first, str) and first in str(found))


def test_unwrapped__of_a_dead_actor_is_its_death() -> None:
    died = RayActorError(error_msg="The actor died unexpectedly")
    assert unwrapped(exceptions.WorkerHealthCheckFailedError("worker 1", died)) is died


def test_worker_group_error__is_an_error_of_training() -> None:
    assert issubclass(WorkerGroupError, TrainingFailedError)
    assert issubclass(ControllerError, TrainingFailedError)


class FakeWorker:
    def __init__(self, node_id: str) -> None:
        self.metadata = SimpleNamespace(node_id=node_id)


def controller(nodes: dict[str, NodeFate], gone: set[str]) -> ElasticController:
    """One with a worker on each of some nodes, but without a run."""
    made = ElasticController.__new__(ElasticController)
    made._supervisor = cast(Any, SimpleNamespace(fate=nodes.__getitem__, is_gone=gone.__contains__))
    workers = [FakeWorker(node_id) for node_id in nodes]
    made._worker_group = SimpleNamespace(get_workers=lambda: workers)
    return made


def test_failures__workers_of_nodes_that_vanished_are_among_them_though_ray_only_waits_for_them() -> None:
    nodes = {"a": NodeFate.ALIVE, "b": NodeFate.DEAD, "c": NodeFate.DRAINING, "d": NodeFate.DRAINING}
    statuses = {rank: WorkerStatus(running=True) for rank in range(4)}
    statuses[0] = WorkerStatus(running=True, error=of_user(RuntimeError("Connection reset by peer")))
    found = controller(nodes, gone={"b", "c"}).failures(WorkerGroupPollStatus(statuses))
    assert [(each.rank, each.fate, each.is_gone) for each in found] == [
        (0, NodeFate.ALIVE, False),
        (1, NodeFate.DEAD, True),
        (2, NodeFate.DRAINING, True),
    ]
    assert classify(found[:2]).cause is Cause.NODE_LOST
    assert classify([found[0], found[2]]).cause is Cause.PREEMPTED


class Looks:
    """A supervisor whose looks at the cluster fail."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.told: list[tuple[str, bool]] = []

    def decide_start(self) -> int | None:
        raise self.error

    def watch(self) -> None:
        raise self.error

    def not_started(self, detail: str, is_timeout: bool) -> bool:
        self.told.append((detail, is_timeout))
        return True

    def gave_up(self, error: HeliostatError) -> None:
        self.told.append((error.code, False))


def scaling(looks: Looks) -> _Scaling:
    made = _Scaling(ScalingConfig(num_workers=1), cast(Any, looks))
    made._coordinator_client = cast(Any, SimpleNamespace(maybe_send_resource_request=lambda *_: None))
    return made


def test_decisions__a_look_that_fails_decides_nothing() -> None:
    policy = scaling(Looks(GetTimeoutError("no answer from the GCS")))
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert isinstance(policy.make_decision_for_running_worker_group(cast(Any, None), cast(Any, None)), NoopDecision)


def test_decisions__patience_that_is_over_ends_the_run() -> None:
    policy = scaling(Looks(PreemptedError("no room", "Wait")))
    with pytest.raises(PreemptedError):
        policy.make_decision_for_non_running_worker_group()


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (exceptions.WorkerGroupStartupFailedError("a worker died"), True),
        (RayActorError(error_msg="died"), True),
        (RuntimeEnvSetupError("no such package"), True),
        (ActorUnschedulableError("its node has gone"), True),
        (RpcError("list_named_actors: no answer"), True),
        (PreemptedError("no room", "Wait"), False),
        (BUG, False),
    ],
)
def test_failure_policy__what_ray_raises_while_it_starts_is_a_start_that_failed(
    error: Exception, goes_on: bool
) -> None:
    looks = Looks(error)
    decision = _Failures(cast(Any, SimpleNamespace(supervisor=looks))).make_decision(ControllerError(error))
    assert decision is (FailureDecision.RETRY if goes_on else FailureDecision.RAISE)
    assert bool(looks.told) == (error is not BUG)


def test_group__a_start_that_fails_late_gives_its_resources_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    group = _TidyGroup.__new__(_TidyGroup)

    def start(self: WorkerGroup) -> None:
        self._worker_group_state = SimpleNamespace(shutdown=lambda: ended.append("all"))
        raise RpcError("list_named_actors: no answer")

    monkeypatch.setattr(WorkerGroup, "_start", start)
    with pytest.raises(RpcError):
        group._start()
    assert ended == ["all"]
