"""Worker processes that wait on their nodes with everything imported, so that a restart does not.

A worker's imports (torch, DeepSpeed, Ray Train) take seconds of a core. Ray starts processes ahead of their use when it
is asked to (``PrestartWorkers`` of its raylets, which Python has no call for), and gives them to the next actors of the
same runtime environment. The environment names a hook that imports what a worker needs.
"""

import logging
from collections.abc import Mapping
from typing import Any

from heliostat.elastic.nodes import Node

_log = logging.getLogger(__name__)

_ASK_S = 5.0
_KEPT_S = 24 * 3600


def import_hook() -> dict[str, str]:
    """Environment variables of a worker, so that its process imports when it starts and not when it is needed."""
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "heliostat.elastic.standby.import_all"}


def import_all() -> None:
    """What a training worker and its feeders import."""
    import heliostat.data.stream
    import heliostat.models.vit  # noqa: F401


def start_standby(node: Node, environment: Mapping[str, str], count: int) -> bool:
    """Ask a node for processes that wait for work; whether it will start them. They end with the job.

    Args:
        node: Where.
        environment: Variables of the actors that are to take them, besides those of this process's own environment.
        count: How many.
    """
    try:
        _ask(node, environment, count)
    except Exception as error:  # gRPC's and Ray's own kinds; without standby a restart only takes longer
        _log.info("no processes stand by on node %s: %s", node.node_id[:12], error)
        return False
    return True


def _ask(node: Node, environment: Mapping[str, str], count: int) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=get_runtime_env_info(RuntimeEnv(**_inherited(environment))),
        num_workers=count,
        keep_alive_duration_secs=_KEPT_S,
    )
    with init_grpc_channel("{}:{}".format(*node.address)) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_ASK_S)


def _inherited(environment: Mapping[str, str]) -> dict[str, Any]:
    """The runtime environment that an actor gets which this process starts with these variables."""
    import ray

    own: dict[str, Any] = dict(ray.get_runtime_context().runtime_env)
    return {**own, "env_vars": {**own.get("env_vars", {}), **environment}}
