"""The driver's bookkeeping, with nodes and workers that are made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from heliostat.config.scaling import ScalingConfig
from heliostat.elastic import signals
from heliostat.elastic import supervisor as module
from heliostat.elastic.causes import Cause, NodeFate, WorkerFailure
from heliostat.elastic.group import Member, Watched
from heliostat.elastic.nodes import Node
from heliostat.elastic.signals import Order, Pulse, deliver
from heliostat.elastic.supervisor import Supervisor, SupervisorSpec
from heliostat.errors import FencedError, StoreUnreachableError
from heliostat.observe.events import Event, EventType, read_events
from heliostat.storage import Store, open_store

NODES = {name: Node(name, ("127.0.0.1", 1), room=1) for name in ("a", "b")}
DIED = RuntimeError("The actor died unexpectedly")


def pulse(attempt: int, steps_done: int, step_s: float = 0.0, save_s: float = 0.0) -> Pulse:
    return Pulse(attempt, steps_done, 1, 0.0, True, 0.0, (), step_s, save_s, False)


class Call:
    """Of a function in a worker's process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class FakeGroup:
    """Workers that say what they are told to say, one on each node."""

    def __init__(self) -> None:
        self.says = pulse(0, 0)
        self.orders: list[Order] = []
        self.members = [Member(rank, node, 100 + rank, self._call) for rank, node in enumerate(NODES)]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function is deliver:
            self.orders.append(arguments[0])
        return Call(function)


class Rig:
    """A supervisor, and what it looks after."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[str, Node] | Exception = dict(NODES)
        self.group = FakeGroup()
        self.store: Store = open_store(str(folder))
        monkeypatch.setattr(module, "read_nodes", self._read_nodes)
        monkeypatch.setattr("heliostat.elastic.nodes.unreachable", lambda nodes: {n.node_id for n in nodes} - {"a"})
        monkeypatch.setattr("heliostat.elastic.keeping.remove_holders", lambda run_id: None)  # there is no Ray here
        monkeypatch.setattr("ray.wait", lambda calls, **_: (calls, []))
        monkeypatch.setattr("ray.get", lambda call: self.group.says if call.function is signals.pulse else "waits")
        spec = SupervisorSpec(
            run_id="r",
            store=self.store,
            scaling=ScalingConfig(workers=2, min_workers=1, standby_after_s=None, max_failures=1),
            slots=4,
            per_worker={"CPU": 1.0},
            standby=(),
            takes_snapshots=False,
            storage_patience_s=0,
            flush_interval_s=0.01,
        )
        self.supervisor = Supervisor(spec, {})

    def _read_nodes(self, per_worker: Any) -> dict[str, Node]:
        if isinstance(self.nodes, Exception):
            raise self.nodes
        return self.nodes

    def attempt(self, *says: Pulse) -> None:
        """Workers start, and say one thing after another."""
        self.group = FakeGroup()
        self.supervisor.started(self.group)
        for self.group.says in says:
            self.supervisor.watch()
            self.supervisor.watch()  # what was asked for before is heard

    def group_of(self) -> Watched:
        """What is known of the attempt."""
        group = self.supervisor._group
        assert group is not None
        return group

    def fail(self) -> bool:
        """One of them dies."""
        return self.supervisor.interrupted([WorkerFailure(0, "a", NodeFate.ALIVE, is_gone=True, error=DIED)])

    def told(self, kind: EventType) -> list[Event]:
        """Once the run is over."""
        self.supervisor.close("completed")
        return [event for event in read_events(self.store) if event.type == kind]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_not_started__for_a_node_that_went_meanwhile_charges_nobody_and_keeps_off_it(rig: Rig) -> None:
    assert rig.supervisor.decide_start() is None  # it has to settle
    for _ in range(4):
        rig.supervisor.starting(2)
        assert rig.supervisor.not_started("node b does not answer", is_timeout=False)
        assert rig.supervisor.avoided_nodes() == {"b"}
        rig.supervisor._nodes.suspects.clear()  # it answers again, and goes again
    told = rig.told(EventType.INTERRUPTED)
    assert {(each.fields["cause"], *each.fields["nodes"]) for each in told} == {(Cause.NODE_LOST, "b")}


def test_not_started__with_all_nodes_there_is_tried_again_so_often(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.elastic.nodes.unreachable", lambda nodes: set())
    rig.supervisor.decide_start()
    found = []
    for _ in range(2):
        rig.supervisor.starting(2)
        found.append(rig.supervisor.not_started("no such file", is_timeout=False))
    assert found == [True, False]
    assert {each.fields["cause"] for each in rig.told(EventType.INTERRUPTED)} == {Cause.START_FAILED}


def test_interrupted__tells_the_steps_of_the_attempt_and_not_the_most_that_any_has_done(rig: Rig) -> None:
    rig.attempt(pulse(1, 60))
    rig.fail()
    rig.attempt(pulse(0, 0), pulse(2, 55), pulse(2, 57))
    rig.fail()
    rig.supervisor.not_started("no answer", is_timeout=True)
    rig.attempt(pulse(3, 0))
    rig.fail()
    found = [(each.attempt, each.fields["cause"], each.fields["step"]) for each in rig.told(EventType.INTERRUPTED)]
    assert found == [
        (1, Cause.WORKER_CRASH, 60),
        (2, Cause.WORKER_CRASH, 57),
        (2, Cause.START_FAILED, 57),
        (3, Cause.WORKER_CRASH, 0),
    ]


def test_interrupted__steps_that_are_done_again_are_no_progress(rig: Rig) -> None:
    rig.attempt(pulse(1, 60))
    assert rig.fail()
    rig.attempt(pulse(2, 55), pulse(2, 59))
    assert not rig.fail()
    assert rig.supervisor.verdict is not None


def test_probe_nodes__if_ray_does_not_answer_those_are_asked_that_were_there(rig: Rig) -> None:
    rig.attempt(pulse(1, 1))
    rig.nodes = GetTimeoutError("no answer from the GCS")
    rig.supervisor.probe_nodes()
    assert [rig.supervisor.fate(node) for node in NODES] == [NodeFate.ALIVE, NodeFate.DEAD]
    assert [rig.supervisor.is_gone(node) for node in NODES] == [False, True]


def test_stop__a_young_attempt_is_taken_to_be_as_slow_as_the_one_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "clocks", lambda: (now, 1_800_000_000.0 + now))
    going = {**NODES, "b": Node("b", ("127.0.0.1", 1), 1, deadline_unix_s=1_800_000_000.0 + now + 70)}
    rig.attempt(pulse(1, 10, step_s=10.0, save_s=20.0))
    rig.fail()
    rig.attempt(pulse(2, 10))
    rig.nodes = going
    rig.supervisor.watch()
    assert rig.group.orders == [Order.CHECKPOINT] * 2  # at once; there is time for a step more
    now += 10
    rig.supervisor.watch()
    assert rig.group.orders[2:] == [Order.STOP] * 2


class Keeper:
    """In place of the hand on holders."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.can: set[int] = set()
        self.has_ended = False

    def end_processes(self, members: list[Member]) -> dict[int, str]:
        self.asked.append([each.rank for each in members])
        return {each.rank: "was asleep" for each in members if each.rank in self.can}

    def kernel_killed(self, failure: WorkerFailure) -> bool:
        return False

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture
def keeper(rig: Rig) -> Keeper:
    keeper = Keeper()
    rig.supervisor._keeping = keeper  # type: ignore[assignment]
    return keeper


def test_hang__who_could_not_be_ended_is_ended_later(rig: Rig, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.elastic.nodes.unreachable", lambda nodes: set())
    rig.attempt(replace(pulse(1, 10), silent_s=100.0))
    for _ in range(3):
        rig.supervisor.watch()
    assert keeper.asked == [[0, 1]]  # not again at once
    keeper.can = {0}
    for _ in range(3):
        rig.group_of().end_again_at = 0.0
        rig.supervisor.watch()
    assert keeper.asked[1:] == [[0, 1], [1], [1]]
    assert len(rig.told(EventType.HANG_DETECTED)) == 1
    assert "== worker 1" in rig.store.get("logs/hang-attempt-1.txt").decode()


def test_hang__nobody_waits_for_a_node_that_is_gone(rig: Rig, keeper: Keeper) -> None:
    rig.attempt(replace(pulse(1, 10), silent_s=100.0))
    assert keeper.asked == [[0]]
    failures = [WorkerFailure(1, "b", rig.supervisor.fate("b"), is_gone=True, error=DIED)]
    rig.supervisor.interrupted(failures)
    assert [each.fields["cause"] for each in rig.told(EventType.INTERRUPTED)] == [Cause.NODE_LOST]


@pytest.mark.parametrize(
    ("error", "outcome", "ends"),
    [
        (None, "completed", True),
        (None, "interrupted", False),  # by a person: the same command goes on
        (ValueError("bad shape"), "failed", True),
        (FencedError("attempt 3 holds the lease", "Stop"), "failed", False),  # another driver goes on with them
        (StoreUnreachableError("no answer", "Wait"), "failed", False),
    ],
)
def test_close__snapshots_stay_for_whoever_may_go_on(
    rig: Rig, keeper: Keeper, error: Exception | None, outcome: str, ends: bool
) -> None:
    rig.attempt(pulse(1, 0))
    goes_on = True
    while error is not None and goes_on:
        goes_on = rig.supervisor.interrupted([WorkerFailure(0, "a", NodeFate.ALIVE, is_gone=False, error=error)])
    rig.supervisor.close(outcome)
    assert keeper.has_ended is ends


def test_decide_start__does_not_wait_for_a_cluster_to_rest_that_never_does(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    for tick in range(20):  # another node comes or goes twice in each second
        now = 1000.0 + 0.5 * tick
        monkeypatch.setattr(module, "clocks", lambda now=now: (now, now))
        rig.nodes = {**NODES, "c": Node("c", ("127.0.0.1", 1), room=tick % 2)}
        started.append(rig.supervisor.decide_start())
    assert started[0] is None
    assert started[-1] == 2
