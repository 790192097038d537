"""A Ray cluster of several nodes on this machine, of which nodes come and go as spot nodes do.

Real raylets with made-up resources; nothing of it outlives its context. Ray's health checks are as tight as on the
clusters that we render: a node that vanishes is noticed in three seconds.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliostat_cluster.local import LOCAL_ENV

WORKER_RESOURCE = "trainer"
"""Of which a simulated node has as many units as workers may run on it."""
HEALTH_CHECKS: Mapping[str, int] = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Of the head's system configuration."""
_STORE_BYTES = 200 * 2**20
_HEAD_CPUS = 2
_NODE_CPUS = 2
"""Per worker: data tasks and workers never wait for each other."""


@dataclass(slots=True)
class SimulatedCluster:
    """A head and nodes; see ``simulated_cluster``."""

    cluster: Any
    nodes: list[Any] = field(default_factory=list)
    """Ray's objects, in the order in which they came; those that have gone are gone from here too."""
    drained: set[str] = field(default_factory=set)
    """Ids of nodes that were announced to go; Ray gives them no more work, even if they stay."""

    @property
    def address(self) -> str:
        """For ``ray.init`` and ``heliostat run --address``."""
        return str(self.cluster.address)

    def add_node(self, workers: int = 1) -> str:
        """Start a node with room for workers; its id. From the main thread only, as Ray wants it."""
        node = self.cluster.add_node(
            num_cpus=_NODE_CPUS * workers,
            resources={WORKER_RESOURCE: workers},
            object_store_memory=_STORE_BYTES,
            labels={"ray.io/market-type": "spot"},
        )
        self.nodes.append(node)
        return str(node.node_id)

    def kill_node(self, node_id: str) -> None:
        """A node vanishes without a word: its raylet and all that runs under it, at once."""
        node = self._find(node_id)
        for pid in _processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def drain_node(self, node_id: str, deadline_s: float) -> None:
        """A notice that a node will be taken away; nothing is taken away here."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
        from ray.core.generated import autoscaler_pb2

        accepted, reason = GcsClient(address=self.address).drain_node(
            node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "spot capacity is reclaimed",
            int((time.time() + deadline_s) * 1000),
        )
        if not accepted:
            raise RuntimeError(f"Ray refuses to drain {node_id}: {reason}")
        self.drained.add(node_id)

    def freeze_node(self, node_id: str, is_frozen: bool = True) -> None:
        """Stop a node's processes without ending them, or let them go on: a network that is cut looks like this."""
        node = self._find(node_id)
        for pid in _processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if is_frozen else signal.SIGCONT)

    def all_processes(self) -> set[int]:
        """Pids of all nodes' processes and of what runs under them, the head's too."""
        return {pid for node in self.cluster.list_all_nodes() for pid in _processes(node)}

    def processes(self, node_id: str, title: str) -> list[int]:
        """Processes of a node whose title begins so: ``ray::RayTrainWorker`` are those that train."""
        return [pid for pid in _processes(self._find(node_id)) if _title(pid).startswith(title)]

    def _find(self, node_id: str) -> Any:
        return next(node for node in self.nodes if node.node_id == node_id)


@contextmanager
def simulated_cluster(nodes: int, workers_per_node: int = 1) -> Iterator[SimulatedCluster]:
    """A head, on which no worker runs, and nodes; all gone afterwards."""
    from ray.cluster_utils import Cluster

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a cluster is simulated from the main thread: raylets end with the thread that started them")
    os.environ.update(LOCAL_ENV)
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": _HEAD_CPUS,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            # Ray would start a process per CPU and node before anybody asks for one.
            "_system_config": {**HEALTH_CHECKS, "prestart_worker_first_driver": False},
        },
    )
    simulated = SimulatedCluster(cluster)
    try:
        for _ in range(nodes):
            simulated.add_node(workers_per_node)
        yield simulated
    finally:
        for node in list(simulated.nodes):
            simulated.kill_node(node.node_id)
        cluster.shutdown()


def _processes(node: Any) -> list[int]:
    """A node's raylet and all that runs under it."""
    own = [info.process.pid for infos in node.all_processes.values() for info in infos]
    return [*own, *(child for pid in own for child in _descendants(pid))]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it has ended
        return ""


def _descendants(pid: int) -> list[int]:
    """Processes below one, from /proc."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with suppress(OSError):
            for thread in os.scandir(f"/proc/{parent}/task"):
                with open(f"{thread.path}/children") as children:  # noqa: PTH123 -- a path of the kernel's
                    below = [int(child) for child in children.read().split()]
                found += below
                waiting += below
    return found
