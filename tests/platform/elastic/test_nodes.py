import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.elastic.nodes import Node, NodeWatch, unreachable

NOON = 1_800_000_000.0


def node(name: str, room: int = 1, deadline_unix_s: float | None = None) -> Node:
    return Node(name, ("127.0.0.1", 1), room, deadline_unix_s)


def watch(*nodes: Node, now: float = 1000.0) -> NodeWatch:
    watched = NodeWatch()
    watched.update({each.node_id: each for each in nodes}, now, NOON)
    return watched


def test_healthy__counts_ours_and_free_room_on_nodes_that_stay() -> None:
    watched = watch(node("a", room=0), node("b", room=2), node("c", room=1, deadline_unix_s=NOON + 30), node("d"))
    watched.suspects.add("d")
    assert watched.healthy({"a": 1, "c": 1}, 1000.0) == 3
    assert watched.avoided() == {"c", "d"}
    assert watched.draining() == {"c"}


def test_healthy__tells_how_long_nothing_has_changed() -> None:
    watched = watch(node("a"))
    watched.healthy({}, 1000.0)
    watched.healthy({}, 1007.0)
    assert watched.changed_at == 1000.0
    watched.update({"a": node("a"), "b": node("b")}, 1008.0, NOON)
    watched.healthy({}, 1008.0)
    assert watched.changed_at == 1008.0


@given(jump_s=st.floats(-7200, 7200))
def test_deadline__stays_when_the_time_of_day_is_set(jump_s: float) -> None:
    announced = node("a", deadline_unix_s=NOON + 30)
    watched = watch(announced)
    watched.update({"a": announced}, 1010.0, NOON + 10 + jump_s)
    assert watched.deadline_s("a", 1010.0) == pytest.approx(20)


@pytest.mark.parametrize("announced", [0.0, NOON - 3600, NOON, NOON + 86_400])
def test_deadline__that_cannot_be_believed_is_the_shortest_notice(announced: float) -> None:
    assert watch(node("a", deadline_unix_s=announced)).deadline_s("a", 1000.0) == 30


def test_deadline__follows_a_new_notice_and_its_withdrawal() -> None:
    watched = watch(node("a", deadline_unix_s=NOON + 30))
    watched.update({"a": node("a", deadline_unix_s=NOON + 120)}, 1010.0, NOON + 10)
    assert watched.deadline_s("a", 1010.0) == pytest.approx(110)
    watched.update({"a": node("a")}, 1011.0, NOON + 11)
    assert watched.deadline_s("a", 1011.0) is None
    assert watched.avoided() == set()


def test_flaps__are_nodes_that_came_and_went() -> None:
    watched = watch(node("old"))
    watched.update({"old": node("old"), "new": node("new")}, 1010.0, NOON)
    watched.update({"old": node("old")}, 1030.0, NOON)
    assert watched.flaps == 1
    assert 0 < watched.longest_flap_s < 120
    watched.update({}, 1040.0, NOON)  # a node that was there from the beginning has not flapped
    assert watched.flaps == 1
    watched.update({}, 1631.0, NOON)
    assert (watched.flaps, watched.longest_flap_s) == (0, 0.0)


def test_unreachable__is_who_takes_no_connection() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        there = replace(node("there"), address=listening.getsockname())
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            gone = replace(node("gone"), address=closed.getsockname())
        assert unreachable([there, gone]) == {"gone"}
    assert unreachable([]) == set()


def test_probe__trusts_a_node_again_that_answers() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        watched = watch(replace(node("a"), address=listening.getsockname()))
        watched.suspects = {"a"}
        watched.probe({"a", "unknown"})
    assert watched.suspects == set()
