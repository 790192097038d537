from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.elastic.policy import (
    ClusterView,
    Decision,
    Keep,
    Limits,
    Resize,
    Wait,
    decide,
    grow_patience_s,
    useful_workers,
)

LIMITS = Limits(min_workers=2, max_workers=8, slots=24, settle_s=1, grow_patience_s=10, stop_s=5)


@pytest.mark.parametrize(
    ("view", "running", "decision"),
    [
        # Between attempts.
        (ClusterView(8, quiet_s=1), 0, Resize(8)),
        (ClusterView(9, quiet_s=1), 0, Resize(8)),
        (ClusterView(8, quiet_s=0.5), 0, Wait()),  # more nodes may go, or be found gone
        (ClusterView(1, quiet_s=100), 0, Wait()),
        (ClusterView(2, quiet_s=100), 0, Resize(2)),
        (ClusterView(8, quiet_s=0.5, room_s=3), 0, Resize(8)),  # among many nodes there is never a rest
        (ClusterView(7, quiet_s=1), 0, Resize(6)),  # 24 slots: 7 workers take as many rounds as 6
        (ClusterView(0, quiet_s=100), 0, Wait()),
        # Nothing to do.
        (ClusterView(4, quiet_s=100), 4, Keep()),
        (ClusterView(5, quiet_s=100), 4, Resize(5)),
        (ClusterView(7, quiet_s=100), 6, Keep()),  # an idle seventh would interrupt for nothing
        (ClusterView(3, quiet_s=100), 4, Keep()),  # a worker that is gone ends the attempt without us
        # Growth has to last.
        (ClusterView(6, quiet_s=9.9), 4, Keep()),
        (ClusterView(6, quiet_s=10), 4, Resize(6)),
        (ClusterView(6, quiet_s=0, room_s=29), 4, Keep()),
        (ClusterView(6, quiet_s=0, room_s=30), 4, Resize(6)),  # others come and go, but there has been room all along
        (ClusterView(6, quiet_s=0, room_s=30, flaps=1), 4, Keep()),
        (ClusterView(6, quiet_s=10, flaps=1), 4, Keep()),
        (ClusterView(6, quiet_s=40, flaps=1), 4, Resize(6)),
        (ClusterView(6, quiet_s=40, flaps=1, longest_flap_s=21), 4, Keep()),  # the last one stayed half as long
        # A node that will go is used until it has to be left.
        (ClusterView(3, drain_deadline_s=6, quiet_s=0), 4, Keep()),
        (ClusterView(3, drain_deadline_s=5, quiet_s=0), 4, Resize(3)),
        (ClusterView(3, drain_deadline_s=-1, quiet_s=0), 4, Resize(3)),
        (ClusterView(1, drain_deadline_s=5, quiet_s=0), 4, Wait()),
        (ClusterView(4, drain_deadline_s=5, quiet_s=0), 4, Resize(4)),  # another node has come in time
        (ClusterView(3, drain_deadline_s=float("inf"), quiet_s=0), 4, Keep()),  # the notice was withdrawn
    ],
)
def test_decide__table(view: ClusterView, running: int, decision: Decision) -> None:
    assert decide(view, running, LIMITS) == decision


@given(
    healthy=st.integers(0, 300),
    slots=st.integers(1, 200),
    most=st.integers(1, 200),
    fewest=st.integers(1, 200),
)
def test_useful_workers__as_fast_as_all_and_not_one_too_many(healthy: int, slots: int, most: int, fewest: int) -> None:
    most, fewest = min(most, slots), min(fewest, most, slots)
    workers = useful_workers(healthy, Limits(fewest, most, slots))
    if healthy < fewest:
        assert workers == 0
        return
    assert fewest <= workers <= min(healthy, most)
    if healthy >= most:
        assert workers == most  # what was asked for, if it is there
        return
    rounds = [-(-slots // count) for count in range(1, healthy + 1)]
    assert rounds[workers - 1] == rounds[healthy - 1]
    assert workers == fewest or rounds[workers - 2] > rounds[workers - 1]


@given(flaps=st.integers(0, 10_000), stayed_s=st.floats(0, 120))
def test_grow_patience__never_shrinks_and_ends(flaps: int, stayed_s: float) -> None:
    view = ClusterView(4, flaps=flaps, longest_flap_s=stayed_s)
    patience_s = grow_patience_s(view, LIMITS)
    assert max(LIMITS.grow_patience_s, 2 * stayed_s) <= patience_s <= 600
    assert patience_s <= grow_patience_s(replace(view, flaps=flaps + 1), LIMITS)


@given(
    changes=st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 8)), min_size=1, max_size=30),
)
def test_decide__a_flapping_cluster_is_not_followed(changes: list[tuple[float, int]]) -> None:
    """However capacity moves, no attempt is interrupted for growth twice within the patience."""
    now, healthy, changed, running, grown_at, room_since = 0.0, 4, 0.0, 4, -1e9, 0.0
    for lasts_s, count in changes:
        if count != healthy:
            healthy, changed = count, now
        end = now + lasts_s
        while now < end:
            room_since = room_since if useful_workers(healthy, LIMITS) > running else now
            view = ClusterView(healthy, quiet_s=now - changed, room_s=now - room_since)
            decision = decide(view, running, LIMITS)
            if isinstance(decision, Resize):
                assert now - grown_at >= LIMITS.grow_patience_s
                running, grown_at, room_since = decision.workers, now, now
            now += 0.5
