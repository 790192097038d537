from typing import Any

import pytest

from heliostat.elastic import standby as module
from heliostat.elastic.nodes import Node
from heliostat.elastic.standby import Standby, StandbyKind, standby_wanted

KIND = StandbyKind({}, 1, is_nested=False)
HEAD = Node("head", ("127.0.0.1", 1), room=0)


@pytest.mark.parametrize(
    ("on_node", "rooms", "waiting", "spare", "wanted"),
    [
        ({"a": 2}, {"a": 0}, {}, 2, {"a": 2}),
        ({"a": 2, "gone": 1}, {"a": 0}, {}, 2, {"a": 2}),
        ({"a": 1}, {"a": 0, "b": 8, "c": 8}, {}, 1, {"a": 1, "b": 1, "c": 0}),
        ({"a": 1}, {"a": 0, "b": 8, "c": 8}, {"c": 1}, 1, {"a": 1, "c": 1, "b": 0}),  # where some stand by already
        ({"a": 1}, {"a": 0, "b": 2, "c": 8}, {}, 5, {"a": 1, "b": 2, "c": 3}),
        ({"a": 1}, {"a": 7}, {}, 5, {"a": 1}),
    ],
)
def test_standby_wanted__table(
    on_node: dict[str, int], rooms: dict[str, int], waiting: dict[str, int], spare: int, wanted: dict[str, int]
) -> None:
    assert standby_wanted(on_node, rooms, waiting, spare) == wanted


class Raylets:
    """What nodes were asked for, and whether they do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, int] = {}
        self.do_it = True
        monkeypatch.setattr(module, "start_standby", self._start)

    def _start(self, node: Node, kind: StandbyKind, workers: int) -> bool:
        self.asked[node.node_id] = self.asked.get(node.node_id, 0) + workers
        return self.do_it


@pytest.fixture
def raylets(monkeypatch: pytest.MonkeyPatch) -> Raylets:
    return Raylets(monkeypatch)


def look_after(standby: Standby, on_node: dict[str, int]) -> None:
    nodes: dict[str, Any] = {name: Node(name, ("127.0.0.1", 1), room=4) for name in ("a", "b")}
    for _ in range(3):
        standby.look_after(HEAD, nodes, on_node, spare=2)


def test_standby__asks_an_unused_node_once_in_all_attempts_and_a_used_one_for_what_was_used(raylets: Raylets) -> None:
    standby = Standby([KIND], {})
    for _ in range(3):
        standby.attempt_begins({"a": 2})
        look_after(standby, {"a": 2})
    assert raylets.asked == {"head": 3, "a": 6, "b": 2}
    standby.attempt_begins({"a": 2, "b": 1})
    look_after(standby, {"a": 2, "b": 1})
    assert raylets.asked == {"head": 4, "a": 8, "b": 2}  # one of two was used there, and one is wanted


def test_standby__a_node_that_refuses_is_asked_again_in_the_next_attempt(raylets: Raylets) -> None:
    standby = Standby([KIND], {})
    raylets.do_it = False
    for count in (1, 2):
        standby.attempt_begins({"a": 1})
        look_after(standby, {"a": 1})
        assert raylets.asked["a"] == count
