"""The driver's hand on the holders of a run: which node has one, which worker uses which."""

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from heliostat.elastic.causes import NodeFate, WorkerFailure
from heliostat.elastic.group import Member, Watched
from heliostat.elastic.holders import ensure_holders, known_holders, remove_holders
from heliostat.elastic.signals import Assignment, assign

_AGAIN_S = 10.0
_OOM_S = 1.0
_END_S = 15.0
_GREET_S = 300.0

_log = logging.getLogger(__name__)


class Keeping:
    """Starts holders, tells workers of them, and asks them about their nodes.

    Args:
        run_id: Of the run.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._holders: dict[str, Any] = {}
        self._oom_kills: dict[str, Any] = {}
        """Ray's references to the count of each node when the attempt began."""
        self._told_at = 0.0
        self._greeted_at = time.monotonic()

    def begin(self, group: Watched, reachable: Collection[str], usable: Collection[str]) -> list[Any]:
        """For a new attempt; Ray's references to the telling.

        Args:
            group: Its workers.
            reachable: Nodes that answer.
            usable: Those of them that are to stay.
        """
        calls = self._tell(group, reachable, usable)
        self._oom_kills = {node: self._holders[node].oom_kills.remote() for node in group.on_node}
        return calls

    def repair(self, group: Watched, reachable: Collection[str], usable: Collection[str]) -> None:
        """Some worker could not put its snapshot where it belongs: replace what is gone, but not again at once."""
        if time.monotonic() - self._told_at > _AGAIN_S:
            self._tell(group, reachable, usable)

    def _tell(self, group: Watched, reachable: Collection[str], usable: Collection[str]) -> list[Any]:
        used = sorted(group.on_node)
        others = sorted(set(usable) - set(used))
        wanted = [*used, *others[: 1 if len(used) == 1 else 0]]
        known = {node: each for node, each in known_holders(self._run_id).items() if node in reachable}
        self._holders = {**known, **ensure_holders(self._run_id, wanted)}
        self._told_at = time.monotonic()
        return [member.call(assign, self._assignment(member, used, others)) for member in group.members]

    def _assignment(self, member: Member, used: Sequence[str], others: Sequence[str]) -> Assignment:
        """A worker's part is kept on its own node and on the next one that trains, or on any other if none does."""
        ring = list(used) if len(used) > 1 else [*used, *others[:1]]
        place = ring.index(member.node_id)
        keepers = dict.fromkeys((member.node_id, ring[(place + 1) % len(ring)]))
        return Assignment(tuple(self._holders[node] for node in keepers), tuple(self._holders.values()))

    def end_processes(self, members: Sequence[Member]) -> dict[int, str]:
        """Kill workers' processes from their own nodes: what is stopped heeds nothing else.

        Args:
            members: The workers.

        Returns:
            What those were doing that could be ended, by rank.
        """
        import ray
        from ray.exceptions import RayError

        without = {member.node_id for member in members} - self._holders.keys()
        self._holders |= ensure_holders(self._run_id, sorted(without))
        calls = {self._holders[each.node_id].end_process.remote(each.pid): each.rank for each in members}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_END_S) if calls else ([], [])
        ended: dict[int, str] = {}
        for call in done:
            try:
                ended[calls[call]] = str(ray.get(call))
            except RayError as error:
                _log.warning("worker %d could not be ended: %s", calls[call], type(error).__name__)
        return ended

    def greet(self) -> None:
        """Now and then, tell all holders of the run that it goes on: those that nobody speaks to end themselves."""
        now = time.monotonic()
        if now - self._greeted_at > _GREET_S:
            self._greeted_at = now
            for holder in known_holders(self._run_id).values():
                holder.stay.remote()

    def end(self) -> None:
        """Nobody will go on with the run: its snapshots are worth nothing."""
        from ray.exceptions import RayError

        with suppress(RayError):  # they end themselves later
            remove_holders(self._run_id)

    def kernel_killed(self, failure: WorkerFailure) -> bool:
        """Whether the kernel of a worker's node has ended a process for want of memory since the attempt began."""
        import ray
        from ray.exceptions import RayError

        holder = self._holders.get(failure.node)
        if not failure.is_gone or failure.fate is not NodeFate.ALIVE or holder is None:
            return False
        try:
            before, now = ray.get([self._oom_kills[failure.node], holder.oom_kills.remote()], timeout=_OOM_S)
        except (RayError, KeyError):
            return False
        return bool(now > before)
