"""Worker processes that wait on their nodes with everything imported, so that a restart does not.

A worker's imports (torch, DeepSpeed, Ray Train) take seconds of a core. Ray starts processes ahead of their use when it
is asked to (``PrestartWorkers`` of its raylets, which Python has no call for), and gives them to the next actors of the
same runtime environment. The environment names a hook that imports what a worker needs.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


OF_RAY_TRAIN = StandbyKind({}, 1, is_nested=False)
"""What Ray Train starts beside the controller for each group."""


def standby_wanted(
    on_node: Mapping[str, int], rooms: Mapping[str, int], waiting: Mapping[str, int], spare: int
) -> dict[str, int]:
    """Workers by node for which processes are to stand by.

    Args:
        on_node: Workers of the attempt: as many are wanted there, for the next one.
        rooms: Workers that fit besides, by node; no others are asked.
        waiting: For how many processes stand by already, by node.
        spare: Wanted altogether on nodes without workers, first where some stand by already.
    """
    wanted = {node_id: workers for node_id, workers in on_node.items() if node_id in rooms}
    for node_id in sorted(rooms.keys() - on_node.keys(), key=lambda each: (-waiting.get(each, 0), each)):
        wanted[node_id] = min(rooms[node_id], spare)
        spare -= wanted[node_id]
    return wanted


class Standby:
    """Has processes stand by, and remembers from attempt to attempt where some still do: Ray starts more when asked.

    Args:
        kinds: What a worker needs on its node, in the order in which it needs it.
        environment: Variables that every worker gets besides those of ``kinds``.
    """

    def __init__(self, kinds: Sequence[StandbyKind], environment: Mapping[str, str]) -> None:
        self._kinds = [replace(kind, environment={**environment, **kind.environment}) for kind in kinds]
        self._waiting: dict[str, int] = {}
        self._asked: set[str] = set()
        """Nodes that were asked since the attempt began: a node that refuses is not pressed."""
        self._has_begun = False

    def attempt_begins(self, on_node: Mapping[str, int]) -> None:
        """So many workers have been started, of what stood by as far as it went."""
        self._asked.clear()
        self._has_begun = False
        for node_id, workers in on_node.items():
            self._waiting[node_id] = max(0, self._waiting.get(node_id, 0) - workers)

    def look_after(self, here: Node | None, nodes: Mapping[str, Node], on_node: Mapping[str, int], spare: int) -> None:
        """Ask for what is missing, each node once in an attempt.

        Args:
            here: The controller's node.
            nodes: That workers may be started on.
            on_node: Workers of the attempt.
            spare: See ``standby_wanted``.
        """
        if not self._has_begun and here is not None:
            start_standby(here, OF_RAY_TRAIN, 1)
        self._has_begun = True
        rooms = {node_id: node.room for node_id, node in nodes.items()}
        for node_id, workers in standby_wanted(on_node, rooms, self._waiting, spare).items():
            missing = workers - self._waiting.get(node_id, 0)
            if missing > 0 and node_id not in self._asked:
                self._asked.add(node_id)
                if all(start_standby(nodes[node_id], kind, missing) for kind in self._kinds):
                    self._waiting[node_id] = workers


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
