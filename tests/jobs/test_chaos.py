"""What the demo does to its run, and when, with a cluster that only takes notes."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from heliostat_jobs import chaos
from heliostat_jobs.chaos import Act, Deed, _Director, _failure, chaos_plan


@dataclass
class Notes:
    """Stands in for a simulated cluster."""

    running: dict[str, list[int]]
    taken: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(node_id=name) for name in self.running]

    def processes(self, node_id: str, title: str) -> list[int]:
        assert title == "ray::RayTrainWorker"
        return self.running[node_id]

    def drain_node(self, node_id: str, deadline_s: float) -> None:
        self.taken.append(f"drain {node_id} in {deadline_s:g} s")

    def kill_node(self, node_id: str) -> None:
        self.taken.append(f"kill {node_id}")
        del self.running[node_id]

    def add_node(self) -> None:
        self.taken.append("add")
        self.running["new"] = []


def test_plan__kills_a_worker_and_then_exchanges_a_node() -> None:
    plan = chaos_plan(300)
    assert [(deed.act, deed.step) for deed in plan] == [
        (Act.KILL_WORKER, 90),
        (Act.ANNOUNCE, 165),
        (Act.TAKE_NODE, 165),
        (Act.ADD_NODE, 165),
    ]
    assert [deed.after_s for deed in plan] == [0, 0, 8, 8]


def test_plan__of_a_resumed_run_leaves_out_what_was_done() -> None:
    assert [deed.act for deed in chaos_plan(300, done=90)] == [Act.ANNOUNCE, Act.TAKE_NODE, Act.ADD_NODE]
    assert chaos_plan(300, done=165) == []


@pytest.mark.parametrize(("step", "since_s", "expected"), [(9, 99, False), (10, 4.9, False), (10, 5, True)])
def test_deed__waits_for_its_step_and_its_time(step: int, since_s: float, expected: bool) -> None:
    assert Deed(Act.TAKE_NODE, 10, 5).is_due(step, since_s) is expected


def test_director__does_all_in_turn_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(chaos, "_LOOK_S", 0.0)
    monkeypatch.setattr("os.kill", lambda pid, _: killed.append(pid))
    cluster, told, steps = Notes({"a": [], "b": [7]}), list[str](), iter(range(100))
    plan = [Deed(act, 10 + number) for number, act in enumerate(Act)]
    _Director(cluster, told.append).carry_out(plan, lambda: next(steps), lambda: len(told) < len(plan))  # type: ignore[arg-type]
    assert killed == [7]
    assert cluster.taken == ["drain b in 8 s", "kill b", "add"]
    assert [line.split(":")[1] for line in told] == [f" after step {step}" for step in (11, 12, 13, 14)]


def test_director__waits_while_nobody_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "_LOOK_S", 0.0)
    cluster, told, looks = Notes({"a": []}), list[str](), iter([True, True, True, False])
    _Director(cluster, told.append).carry_out([Deed(Act.ANNOUNCE, 0)], lambda: 5, lambda: next(looks))  # type: ignore[arg-type]
    assert told == cluster.taken == []


def test_failure__is_what_the_run_said() -> None:
    error = _failure('{"error": {"code": "HS-RUN-003", "message": "no room", "next_step": "Wait"}}\n', 1)
    assert (error.fact, error.next_step) == ("no room", "Wait")
    assert "status 9" in _failure("", 9).fact
