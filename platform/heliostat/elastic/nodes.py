"""What Ray knows of its nodes right now, and what it does not know yet."""

import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

_PROBE_S = 1.0
_UNSAID_DEADLINE_S = 30.0
"""Assumed where a notice names no time, or none that can be believed: the shortest notice that clouds give."""
_LONGEST_NOTICE_S = 3600.0
_YOUNG_S = 120.0
_REMEMBERED_S = 600.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive as far as Ray knows."""

    node_id: str
    address: tuple[str, int]
    """Of its raylet."""
    room: int
    """Workers that fit beside those that run there."""
    deadline_unix_s: float | None = None
    """When it will be taken away; None if it is to stay, 0 if nobody says when."""


def read_nodes(per_worker: Mapping[str, float]) -> dict[str, Node]:
    """All nodes that Ray holds for alive, by id.

    Args:
        per_worker: Resources of one worker.
    """
    import ray
    from ray._private.state import state

    draining = state.get_draining_nodes()
    free = state.available_resources_per_node()
    return {
        node["NodeID"]: Node(
            node["NodeID"],
            (node["NodeManagerAddress"], int(node["NodeManagerPort"])),
            _room(free.get(node["NodeID"], {}), per_worker),
            draining[node["NodeID"]] / 1000 if node["NodeID"] in draining else None,
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def _room(free: Mapping[str, float], per_worker: Mapping[str, float]) -> int:
    return min((int((free.get(name, 0.0) + 1e-6) // need) for name, need in per_worker.items() if need), default=0)


def unreachable(nodes: Iterable[Node]) -> set[str]:
    """Ids of nodes whose raylet takes no connection: Ray itself finds out seconds later, or a minute."""
    listed = list(nodes)
    if not listed:
        return set()
    with ThreadPoolExecutor(min(32, len(listed))) as pool:
        answers = list(pool.map(_answers, listed))
    return {node.node_id for node, answered in zip(listed, answers, strict=True) if not answered}


def _answers(node: Node) -> bool:
    try:
        with socket.create_connection(node.address, timeout=_PROBE_S):
            return True
    except OSError:
        return False


@dataclass(slots=True)
class NodeWatch:
    """Nodes over time: which are suspect, when they go, how long nothing has changed, which come and go.

    All times are of the monotonic clock: a deadline does not move when somebody sets the time of day.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    suspects: set[str] = field(default_factory=set)
    """Alive to Ray, but they do not answer."""
    changed_at: float = 0.0
    """When ``healthy`` last changed."""
    _healthy: int = -1
    _first_seen: dict[str, float] = field(default_factory=dict)
    _deadlines: dict[str, tuple[float, float]] = field(default_factory=dict)
    """As announced, and on our clock."""
    _flaps: list[tuple[float, float]] = field(default_factory=list)
    """When such a node went, and for how many seconds it had been there."""

    def update(self, nodes: Mapping[str, Node], now: float, now_unix_s: float) -> None:
        """Take in what Ray says."""
        is_first = not self._first_seen
        for node_id in self.nodes.keys() - nodes.keys():
            self.suspects.discard(node_id)
            stayed_s = now - self._first_seen.get(node_id, now)
            if stayed_s < _YOUNG_S:
                self._flaps.append((now, stayed_s))
        for node_id, node in nodes.items():
            self._first_seen.setdefault(node_id, now - _YOUNG_S if is_first else now)
            self._note_deadline(node, now, now_unix_s)
        self._deadlines = {node_id: known for node_id, known in self._deadlines.items() if node_id in nodes}
        self._flaps = [flap for flap in self._flaps if now - flap[0] < _REMEMBERED_S]
        self.nodes = dict(nodes)

    def _note_deadline(self, node: Node, now: float, now_unix_s: float) -> None:
        announced = node.deadline_unix_s
        if announced is None:
            self._deadlines.pop(node.node_id, None)
        elif node.node_id not in self._deadlines or self._deadlines[node.node_id][0] != announced:
            left_s = announced - now_unix_s
            if not 0 < left_s <= _LONGEST_NOTICE_S:
                left_s = _UNSAID_DEADLINE_S
            self._deadlines[node.node_id] = (announced, now + left_s)

    def healthy(self, ours: Mapping[str, int], now: float) -> int:
        """Workers that nodes could hold which are alive, answer and are to stay.

        Args:
            ours: Workers of the run by node.
            now: Seconds on the monotonic clock.
        """
        staying = self.nodes.keys() - self._deadlines.keys() - self.suspects
        count = sum(self.nodes[node_id].room + ours.get(node_id, 0) for node_id in staying)
        if count != self._healthy:
            self._healthy, self.changed_at = count, now
        return count

    def deadline_s(self, node_id: str, now: float) -> float | None:
        """Seconds until a node is taken away; None if it is to stay."""
        known = self._deadlines.get(node_id)
        return None if known is None else known[1] - now

    def draining(self) -> set[str]:
        """Ids of the nodes that will go."""
        return set(self._deadlines)

    def avoided(self) -> set[str]:
        """Ids of the nodes on which no worker must be started, though Ray might."""
        return set(self._deadlines) | self.suspects

    @property
    def flaps(self) -> int:
        """Nodes that came and went within minutes, of late."""
        return len(self._flaps)

    @property
    def longest_flap_s(self) -> float:
        """How long the one of them was there that stayed longest."""
        return max((stayed_s for _, stayed_s in self._flaps), default=0.0)

    def probe(self, node_ids: Iterable[str]) -> None:
        """Ask nodes themselves whether they are there."""
        asked = {node_id for node_id in node_ids if node_id in self.nodes}
        silent = unreachable(self.nodes[node_id] for node_id in asked)
        self.suspects = (self.suspects - asked) | silent


def clocks() -> tuple[float, float]:
    """Now, on the monotonic clock and in Unix time."""
    return time.monotonic(), time.time()
