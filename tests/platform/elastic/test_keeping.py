"""The driver's hand on holders that are made up: Ray's calls are answered at once, or never."""

import time
from typing import Any

import pytest
from ray.exceptions import RayActorError

from heliostat.elastic import keeping as module
from heliostat.elastic.group import Member
from heliostat.elastic.keeping import Keeping


class FakeHolder:
    """Of one node; its answers are tokens that ``ray.get`` turns into what they stand for."""

    def __init__(self, answer: object = "was asleep") -> None:
        self.answer = answer
        self.ended: list[int] = []
        self.stayed = 0

    @property
    def end_process(self) -> Any:
        return Remote(self._end)

    @property
    def stay(self) -> Any:
        return Remote(self._stay)

    def _end(self, pid: int) -> tuple["FakeHolder", int]:
        self.ended.append(pid)
        return self, pid

    def _stay(self) -> None:
        self.stayed += 1


class Remote:
    def __init__(self, remote: Any) -> None:
        self.remote = remote


def wait(calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
    waits.append(timeout)
    return [call for call in calls if call[0].answer is not None], [call for call in calls if call[0].answer is None]


def get(call: Any) -> object:
    if isinstance(call[0].answer, Exception):
        raise call[0].answer
    return call[0].answer


waits: list[float] = []


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeHolder]:
    made = {"a": FakeHolder(), "b": FakeHolder(None), "c": FakeHolder(RayActorError(error_msg="died"))}
    monkeypatch.setattr(module, "ensure_holders", lambda run_id, nodes: {node: made[node] for node in nodes})
    monkeypatch.setattr(module, "known_holders", lambda run_id: made)
    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.get", get)
    waits.clear()
    return made


def test_end_processes__all_are_asked_before_any_is_waited_for(holders: dict[str, FakeHolder]) -> None:
    members = [Member(rank, node, 100 + rank, lambda *_: None) for rank, node in enumerate("abca")]
    assert Keeping("r").end_processes(members) == {0: "was asleep", 3: "was asleep"}
    assert [holder.ended for holder in holders.values()] == [[100, 103], [101], [102]]
    assert len(waits) == 1
    assert Keeping("r").end_processes([]) == {}


def test_greet__every_few_minutes(holders: dict[str, FakeHolder], monkeypatch: pytest.MonkeyPatch) -> None:
    keeping, began = Keeping("r"), time.monotonic()
    for minutes in (1, 6, 7, 12):
        monkeypatch.setattr("time.monotonic", lambda now=began + 60 * minutes: now)
        keeping.greet()
    assert {holder.stayed for holder in holders.values()} == {2}
