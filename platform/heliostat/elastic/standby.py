"""Worker processes that wait on their nodes with everything imported, so that a restart does not.

A worker's imports (torch, DeepSpeed, Ray Train) take seconds of a core. Ray starts processes ahead of their use when it
is asked to (``PrestartWorkers`` of its raylets, which Python has no call for), and gives them to the next actors of the
same runtime environment. The environment names a hook that imports what a worker needs.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliostat.elastic.nodes import Node

_log = logging.getLogger(__name__)

_ASK_S = 5.0
_KEPT_S = 24 * 3600


def import_hook(function: str) -> dict[str, str]:
    """Environment variables of a worker, so that its process calls a function when it starts.

    Args:
        function: As ``package.module.name``.
    """
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: function}


@dataclass(frozen=True, slots=True)
class StandbyKind:
    """Processes that wait for actors of one environment."""

    environment: Mapping[str, str]
    """Variables of the actors, besides those of the process that asks."""
    count: int
    """For each worker of a node."""
    is_nested: bool
    """Whether the actors are started by workers, which have an environment of their own."""


def start_standby(node: Node, kind: StandbyKind, workers: int) -> bool:
    """Ask a node for processes that wait for work; whether it will start them. They end with the job.

    Args:
        node: Where.
        kind: What for.
        workers: Of the node.
    """
    try:
        _ask(node, kind, workers)
    except Exception as error:  # gRPC's and Ray's own kinds; without standby a restart only takes longer
        _log.info("no processes stand by on node %s: %s", node.node_id[:12], error)
        return False
    return True


def _ask(node: Node, kind: StandbyKind, workers: int) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    inherited = _inherited(kind.environment)
    info = get_runtime_env_info(RuntimeEnv(**inherited))
    if kind.is_nested:
        # Environments are told apart by their text. Ray writes it so where it has merged an actor's with its parent's.
        info.serialized_runtime_env = json.dumps(inherited, sort_keys=True, separators=(",", ":"))
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=info,
        num_workers=workers * kind.count,
        keep_alive_duration_secs=_KEPT_S,
    )
    with init_grpc_channel("{}:{}".format(*node.address)) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_ASK_S)


def _inherited(environment: Mapping[str, str]) -> dict[str, Any]:
    """The runtime environment that an actor gets which this process starts with these variables."""
    import ray

    own: dict[str, Any] = dict(ray.get_runtime_context().runtime_env)
    return {**own, "env_vars": {**own.get("env_vars", {}), **environment}}
