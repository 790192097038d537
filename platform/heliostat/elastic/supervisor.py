"""Looks after a run: sees nodes and workers, decides by pure functions, tells workers, writes down what happens.

It lives with Ray Train's controller and is asked by it, through ``ray_train.py``, several times a second. It knows
nothing of Ray Train; a group of workers is a ``Group`` to it.
"""

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from heliostat.config.scaling import ScalingConfig
from heliostat.elastic.causes import Budgets, Cause, Interruption, NodeFate, WorkerFailure, classify, verdict_on
from heliostat.elastic.group import Group, Pace, Watched
from heliostat.elastic.hangs import stacks_of, write_stacks
from heliostat.elastic.health import hung_ranks, stragglers
from heliostat.elastic.keeping import Keeping
from heliostat.elastic.nodes import NodeWatch, clocks, read_nodes
from heliostat.elastic.policy import ClusterView, Decision, Keep, Limits, Resize, decide, useful_workers
from heliostat.elastic.signals import AttemptStoppedError, Order, deliver, pulse
from heliostat.elastic.standby import Standby, StandbyKind
from heliostat.errors import FencedError, HeliostatError, PreemptedError
from heliostat.observe.events import EventType, EventWriter
from heliostat.storage import Store

_log = logging.getLogger(__name__)

_START_PATIENCE_S = 900.0
_END_AGAIN_S = 10.0
_WAIT_TOLD_S = 2.0
_WAIT_TOLD_AGAIN_S = 60.0
DRIVER_STREAM = "driver"
"""Of the events that the driver writes, beside those of the attempts."""


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """What there is to look after; travels to the controller."""

    run_id: str
    """Of this run under this root, on any cluster."""
    store: Store
    """The run's."""
    scaling: ScalingConfig
    slots: int
    per_worker: Mapping[str, float]
    """Ray resources of a worker."""
    standby: Sequence[StandbyKind]
    """What a worker needs on its node, in the order in which it needs it."""
    takes_snapshots: bool
    storage_patience_s: float
    """How long the store may fail before the run is given up."""
    flush_interval_s: float


class Supervisor:
    """See the module.

    Args:
        spec: What there is to look after.
        worker_env: Environment variables that every worker gets besides those of ``spec.standby``.
    """

    def __init__(self, spec: SupervisorSpec, worker_env: Mapping[str, str]) -> None:
        self._spec = spec
        self._standby = Standby(spec.standby, worker_env)
        self._nodes = NodeWatch()
        self._budgets = Budgets(spec.scaling.max_failures, spec.storage_patience_s)
        self._events = EventWriter(spec.store, 0, None, spec.flush_interval_s, stream=DRIVER_STREAM)
        self._group: Watched | None = None
        self._keeping = Keeping(spec.run_id)
        self._attempt = 0
        self._steps_done = 0
        """Of the run, when that attempt was last heard of."""
        self._furthest = 0
        """Steps that any attempt has done."""
        self._pace = Pace()
        self._offered: frozenset[str] = frozenset()
        """Nodes that workers were last started on, or could have been."""
        self._room_since: float | None = None
        """Since when there has been room for more workers than run."""
        self._waits_since: float | None = None
        self._told_wait_at = -math.inf
        self._not_before = -math.inf
        self._has_user_error = False
        self.verdict: HeliostatError | None = None
        """Why the run was given up, if it was."""
        self._event(
            EventType.SUPERVISION_STARTED, min_workers=spec.scaling.min_workers, max_workers=spec.scaling.workers
        )

    def _event(self, kind: EventType, **fields: object) -> None:
        self._events.attempt = self._attempt
        self._events.emit(kind, **fields)

    def _limits(self) -> Limits:
        scaling = self._spec.scaling
        return Limits(
            scaling.min_workers,
            scaling.workers,
            self._spec.slots,
            grow_patience_s=scaling.grow_patience_s,
            stop_s=self._pace.stop_s,
        )

    # Between attempts.

    def decide_start(self) -> int | None:
        """Workers to start now; None while it is better to wait.

        Raises:
            PreemptedError: there has been no room for longer than ``scaling.wait_minutes``.
        """
        view = self._look({})
        self._greet_holders()
        decision = decide(view, 0, self._limits())
        now = time.monotonic()
        if now < self._not_before:
            return None
        if isinstance(decision, Resize):
            self._waits_since, self._told_wait_at = None, -math.inf
            return decision.workers
        if view.healthy >= self._spec.scaling.min_workers:
            return None  # there is room, it only has to settle
        self._waits_since = self._waits_since or now
        waited_s = now - self._waits_since
        if waited_s > _WAIT_TOLD_S and now - self._told_wait_at > _WAIT_TOLD_AGAIN_S:
            self._told_wait_at = now  # again and again: it is the only sign that somebody still waits
            needed = self._spec.scaling.min_workers
            self._event(EventType.CAPACITY_AWAITED, usable=view.healthy, needed=needed)
        patience = self._spec.scaling.wait_minutes
        if patience is not None and waited_s > 60 * patience:
            raise PreemptedError(
                f"there has been room for {view.healthy} workers only for {waited_s / 60:.0f} minutes, at least "
                f"{self._spec.scaling.min_workers} are needed",
                "Run the same command again when there is capacity, or lower scaling.min_workers; "
                "what is committed stays",
            )
        return None

    def avoided_nodes(self) -> set[str]:
        """On which no worker must be started."""
        return self._nodes.avoided()

    def starting(self, workers: int) -> None:
        """Workers are being started."""
        self._offered = frozenset(self._nodes.nodes.keys() - self._nodes.avoided())
        self._event(EventType.WORKERS_STARTING, workers=workers, nodes=sorted(self._offered))

    def started(self, group: Group) -> None:
        """Workers are there, and do not train yet."""
        self._group = watched = Watched(group.members, time.monotonic())
        self._room_since = None
        self._standby.attempt_begins(watched.on_node)
        if not self._spec.takes_snapshots:
            return
        import ray

        ray.get(self._keeping.begin(watched, *self._reachable_and_usable()))

    def _reachable_and_usable(self) -> tuple[set[str], set[str]]:
        reachable = self._nodes.nodes.keys() - self._nodes.suspects
        return reachable, reachable - self._nodes.avoided()

    # While an attempt runs.

    def watch(self) -> None:
        """Look at nodes and workers once, and do what is to be done; several times a second."""
        group = self._group
        if group is None:
            return
        view = self._look(group.on_node)
        self._greet_holders()
        self._hear(group)
        self._pass_on_notices(group)
        decision = decide(view, len(group.members), self._limits())
        if group.stopping is None and not isinstance(decision, Keep):
            self._stop(group, decision)
        self._end_hung(group)
        self._name_stragglers(group)
        self._look_after_standby(group, view.healthy)

    def _look(self, ours: Mapping[str, int]) -> ClusterView:
        now, now_unix_s = clocks()
        self._nodes.update(read_nodes(self._spec.per_worker), now, now_unix_s)
        if self._nodes.suspects:
            self._nodes.probe(set(self._nodes.suspects))
        healthy = self._nodes.healthy(ours, now)
        has_room = useful_workers(healthy, self._limits()) > sum(ours.values())
        self._room_since = (self._room_since or now) if has_room else None
        deadlines = [left_s for node in ours if (left_s := self._nodes.deadline_s(node, now)) is not None]
        return ClusterView(
            healthy,
            min(deadlines, default=float("inf")),
            now - self._nodes.changed_at,
            0.0 if self._room_since is None else now - self._room_since,
            self._nodes.flaps,
            self._nodes.longest_flap_s,
        )

    def _greet_holders(self) -> None:
        if self._spec.takes_snapshots:
            self._keeping.greet()

    def _hear(self, group: Watched) -> None:
        """Take in the pulses that have come, and ask for the next ones."""
        import ray
        from ray.exceptions import RayError

        now = time.monotonic()
        waiting = {call: rank for rank, call in group.calls.items()}
        done = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []
        for call in done:
            rank = waiting[call]
            del group.calls[rank]
            try:
                group.pulses[rank] = ray.get(call)
                group.heard[rank] = now
            except RayError:  # it died: Ray Train will say so
                continue
        for member in group.members:
            if member.rank not in group.calls:
                group.calls[member.rank] = member.call(pulse)
        first = group.pulses.get(0)
        if first is not None and first.attempt >= self._attempt:
            self._attempt, self._steps_done = first.attempt, first.steps_done
            self._furthest = max(self._furthest, first.steps_done)
        self._pace.learn(group.pulses.values())
        if any(each.lost_holder for each in group.pulses.values()):
            self._keeping.repair(group, *self._reachable_and_usable())

    def _tell(self, group: Watched, order: Order) -> None:
        for member in group.members:
            member.call(deliver, order)

    def _pass_on_notices(self, group: Watched) -> None:
        now = time.monotonic()
        ours = self._nodes.draining() & group.on_node.keys()
        if new := ours - group.noticed:
            self._tell(group, Order.CHECKPOINT)
            deadline_s = min(self._nodes.deadline_s(node, now) or 0.0 for node in new)
            self._event(
                EventType.PREEMPTION_NOTICED,
                nodes=sorted(new),
                ranks=group.ranks_on(new),
                deadline_s=round(deadline_s, 1),
            )
        if gone := {node for node in group.noticed - ours if node in self._nodes.nodes}:
            self._event(EventType.PREEMPTION_WITHDRAWN, nodes=sorted(gone))
            group.noticed -= gone
        group.noticed |= new

    def _stop(self, group: Watched, decision: Decision) -> None:
        leaving = bool(group.noticed & self._nodes.draining())
        group.stopping = Cause.PREEMPTED if leaving else Cause.RESIZE
        workers = decision.workers if isinstance(decision, Resize) else 0
        reason = "nodes will be taken away" if leaving else "there is room for more workers"
        self._event(EventType.RESIZE_PLANNED, workers=workers, reason=reason)
        self._tell(group, Order.STOP)

    def _end_hung(self, group: Watched) -> None:
        if group.hung:
            self._end_unended(group)
            return
        now = time.monotonic()
        unheard_s = {rank: now - group.heard[rank] for rank in group.pulses}
        hung = hung_ranks(group.pulses, unheard_s, self._spec.scaling.hang_s, _START_PATIENCE_S)
        if not hung:
            return
        group.hung, group.unended = hung, set(hung)
        self._nodes.probe({group.members[rank].node_id for rank in hung})
        seen = stacks_of(group.members)
        key = write_stacks(self._spec.store, self._attempt, group.members, seen, self._end_unended(group))
        silent_s = round(max(hung.values()), 1)
        self._event(EventType.HANG_DETECTED, ranks=sorted(hung), silent_s=silent_s, stacks=key)

    def _end_unended(self, group: Watched) -> dict[int, str]:
        """End workers that hang, and try again those that are still there; what they were doing."""
        if time.monotonic() < group.end_again_at:
            return {}
        there = [group.members[rank] for rank in sorted(group.unended)]
        ended = self._keeping.end_processes([each for each in there if not self.is_gone(each.node_id)])
        group.unended -= ended.keys()
        group.end_again_at = time.monotonic() + _END_AGAIN_S
        return ended

    def _name_stragglers(self, group: Watched) -> None:
        if len(group.pulses) < len(group.members):
            return
        for rank, times in stragglers([group.pulses[member.rank].local_s for member in group.members]).items():
            if rank not in group.named:
                group.named.add(rank)
                self._event(EventType.STRAGGLER_NAMED, worker=rank, times=round(times, 2))

    def _look_after_standby(self, group: Watched, healthy: int) -> None:
        """Also on nodes that are not used yet: for as many workers as may come, or as one node takes with it."""
        after_s, first = self._spec.scaling.standby_after_s, group.pulses.get(0)
        if after_s is None or first is None or not first.has_trained or time.monotonic() - group.began < after_s:
            return
        import ray

        here = self._nodes.nodes.get(ray.get_runtime_context().get_node_id())
        usable = {node: self._nodes.nodes[node] for node in self._nodes.nodes.keys() - self._nodes.avoided()}
        more = useful_workers(healthy, self._limits()) - len(group.members)
        self._standby.look_after(here, usable, group.on_node, max(more, *group.on_node.values()))

    # When an attempt has ended.

    def interrupted(self, failures: Sequence[WorkerFailure]) -> bool:
        """Find the cause behind failures of workers, and charge it; whether to go on."""
        stopped = [each for each in failures if isinstance(each.error, AttemptStoppedError)]
        group = self._group
        if stopped and group is not None and group.stopping is not None:
            nodes = tuple(sorted(group.noticed)) if group.stopping is Cause.PREEMPTED else ()
            detail = str(stopped[0].error)
            return self._charge(Interruption(group.stopping, tuple(group.ranks_on(set(nodes))), nodes, detail))
        seen = [replace(each, kernel_killed=self._keeping.kernel_killed(each)) for each in failures]
        return self._charge(classify(seen, group.hung if group else None))

    def not_started(self, detail: str, is_timeout: bool) -> bool:
        """A group could not be started; whether to go on.

        Room that somebody else took is waited for. That a node went meanwhile is nobody's failure, and it is kept off
        from now on: Ray may not know for long.
        """
        self._group = None
        self._ask_nodes(self._offered)
        if gone := tuple(sorted(node for node in self._offered if self.is_gone(node))):
            return self._charge(Interruption(Cause.NODE_LOST, nodes=gone, detail=detail))
        return self._charge(Interruption(Cause.START_FAILED, detail=detail), is_free=is_timeout)

    def _charge(self, found: Interruption, is_free: bool = False) -> bool:
        self._group = self._room_since = None
        self._event(
            EventType.INTERRUPTED,
            step=self._steps_done,
            cause=str(found.cause),
            ranks=list(found.ranks),
            nodes=list(found.nodes),
            detail=found.detail,
        )
        _log.warning("attempt %d was interrupted (%s): %s", self._attempt, found.cause, found.detail)
        now = time.monotonic()
        if is_free or self._budgets.allows(found.cause, self._furthest, now):
            self._not_before = now + self._budgets.pause_s(found.cause)
            return True
        # A run that was fenced goes on elsewhere, with the same holders.
        self._has_user_error = found.cause is Cause.USER_ERROR and not isinstance(found.error, FencedError)
        self.verdict = verdict_on(found, self._spec.scaling.max_failures)
        self._event(EventType.GAVE_UP, cause=str(found.cause), detail=found.detail, traceback=found.traceback)
        return False

    def fate(self, node_id: str) -> NodeFate:
        """What has become of a node."""
        if self._group is not None and node_id in self._group.noticed:
            return NodeFate.DRAINING
        if self.is_gone(node_id):
            return NodeFate.DEAD
        return NodeFate.DRAINING if node_id in self._nodes.draining() else NodeFate.ALIVE

    def is_gone(self, node_id: str) -> bool:
        """Whether a node is dead or does not answer, announced or not."""
        return node_id not in self._nodes.nodes or node_id in self._nodes.suspects

    def probe_nodes(self) -> None:
        """Some workers have failed: find out which of their nodes are still there, sooner than Ray does."""
        if self._group is not None:
            self._ask_nodes(self._group.on_node)

    def _ask_nodes(self, node_ids: Collection[str]) -> None:
        from ray.exceptions import RayError

        try:
            self._look({} if self._group is None else self._group.on_node)
        except RayError as error:  # then those that were there are asked
            _log.warning("a look at the cluster failed: %s", error)
        self._nodes.probe(node_ids)

    def gave_up(self, error: HeliostatError) -> None:
        """An error of the supervisor's own ends the run."""
        self.verdict = error
        self._event(EventType.GAVE_UP, cause="capacity", detail=str(error))

    def close(self, outcome: str) -> None:
        """The run is over, or left; whoever goes on with one that was left may need its snapshots, so they stay."""
        self._event(EventType.SUPERVISION_ENDED, outcome=outcome)
        self._events.close()
        if outcome == "completed" or self._has_user_error:
            self._keeping.end()
