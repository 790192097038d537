"""F3, F9, F10, F11 and F19: nodes vanish, all of them, come, flap, and are cut off."""

import os
import signal
import time

from faults.frame import Outcome, seconds_to_recover
from faults.paced import HELD, LET_GO, TRIED
from faults.plan import parse
from faults.rig import unix
from faults.spot_rig import SpotRig

from heliostat.checkpoint.log import CommitLog, LeaseEntry
from heliostat.errors import FencedError
from heliostat.observe.events import EventType, read_events
from heliostat.storage import Store

_ABSENCE_S, _CUT_OFF_S = 30.0, 20.0
_FLAPS, _UP_S, _DOWN_S, _FLAPPING_STEPS = 8, 12.0, 8.0, 450


def loss(rig: SpotRig) -> list[Outcome]:
    """F3: one node vanishes."""
    with rig.run("loss", rig.steps) as live:
        live.carry_out(parse("at step 60 kill node of rank 1"))
        run = live.finish()
    ok = run.causes() == ["node_lost"]
    return [each.checked(ok, run.causes()) for each in run.outcomes(live.done_at, rig.is_exact(run))]


def loss_at_start(rig: SpotRig) -> list[Outcome]:
    """F3 twice: the second node vanishes while workers are started because of the first; no failure is charged."""
    with rig.run("loss-at-start", rig.steps, "scaling.max_failures=0") as live:
        live.wait_for_step(60)
        nodes = [live.node_of(rank) for rank in range(rig.workers)]
        rig.cluster.kill_node(nodes[1])
        live.wait_until(lambda: _starts(live.store) > 1, "the next start of workers")
        began = time.time()
        rig.cluster.kill_node(nodes[2])
        run = live.finish()
    rig.whole()
    exact = rig.is_exact(run)
    found = Outcome(
        "a node vanishes while workers are started",
        exact,
        exact,
        steps_lost=sum(run.lost_steps()),
        recover_s=seconds_to_recover(run.step_ends, began),
    )
    return [found.checked(set(run.causes()) == {"node_lost"}, run.causes())]


def _starts(store: Store) -> int:
    return sum(1 for event in read_events(store) if event.type == EventType.WORKERS_STARTING)


def all_lost(rig: SpotRig) -> list[Outcome]:
    """F9: all nodes vanish and others come half a minute later; no failure is allowed, so none may be charged."""
    with rig.run("all-lost", rig.steps, "scaling.max_failures=0") as live:
        live.wait_for_step(60)
        began = time.time()
        for node in list(rig.cluster.nodes):
            rig.cluster.kill_node(node.node_id)
        live.wait_s(_ABSENCE_S)
        rig.whole()
        came = time.time()
        run = live.finish()
    waited = run.of_type(EventType.CAPACITY_AWAITED)
    exact = rig.is_exact(run)
    # Nodes come one after the other: the run begins with the first ones, and grows.
    ok = run.causes()[:1] == ["node_lost"] and set(run.causes()[1:]) <= {"resize"} and bool(waited)
    found = Outcome(
        f"all nodes vanish for {_ABSENCE_S:g} s",
        exact,
        exact,
        steps_lost=sum(run.lost_steps()),
        detect_s=unix(run.of_type(EventType.INTERRUPTED)[0].time_utc) - began,
        recover_s=seconds_to_recover(run.step_ends, came),
        note="recovery from when nodes came; snapshots went with the nodes",
    )
    return [found.checked(ok, run.causes())]


def growth(rig: SpotRig) -> list[Outcome]:
    """F10: a node comes, and not one step is lost for it."""
    rig.cluster.kill_node(rig.cluster.nodes[-1].node_id)
    with rig.run("growth", rig.steps) as live:
        live.carry_out(parse("at step 60 add node"))
        run = live.finish()
    (_, added_at) = live.done_at[0]
    came_at = live.came_at[0]
    workers = [event.fields["workers"] for event in run.of_type(EventType.ATTEMPT_STARTED)]
    resumed_at = next((unix(event.time_utc) for event in run.of_type(EventType.DATA_READY)[1:]), None)
    ok = workers == [rig.workers - 1, rig.workers] and run.lost_steps() == [0] and run.causes() == ["resize"]
    grown_s = None if resumed_at is None else min(end for end in run.step_ends if end > resumed_at) - came_at
    note = f"{came_at - added_at:.0f} s for Ray to start the node"
    exact = rig.is_exact(run)
    return [Outcome("a node comes", exact, exact, recover_s=grown_s, note=note).checked(ok, run.causes())]


def flapping(rig: SpotRig) -> list[Outcome]:
    """F11: a node comes and goes; after the first time it is not worth an interruption any more."""
    rig.cluster.kill_node(rig.cluster.nodes[-1].node_id)
    with rig.run("flapping", _FLAPPING_STEPS) as live:
        live.wait_for_step(20)
        began = time.time()
        for _ in range(_FLAPS):
            node = rig.cluster.add_node()
            live.wait_s(_UP_S)
            rig.cluster.kill_node(node)
            live.wait_s(_DOWN_S)
        ended = time.time()
        run = live.finish()
    steps = len([line for line in run.lines if began < unix(line.time_utc) < ended])
    share = steps * live.pace_s / (ended - began)
    grown = run.causes().count("resize")
    # The first one may go while its workers are being started.
    ok = grown <= 1 and set(run.causes()) <= {"resize", "node_lost", "start_failed"}
    note = f"grown {grown} times, {share:.0%} of the steps of a stable run meanwhile"
    exact = rig.is_exact(run, _FLAPPING_STEPS)
    return [Outcome(f"a node flaps {_FLAPS} times", exact, exact, note=note).checked(ok, run.causes())]


def partition(rig: SpotRig) -> list[Outcome]:
    """F19: rank 0's node does not answer for 20 s and comes back: nothing of the old attempt may count any more.

    It is cut off when it has all parts of a checkpoint and is about to commit it. Its worker answers again before its
    raylet does, which ends the worker when it hears that the node was given up: so the worker does try to commit.
    """
    with rig.run("partition", rig.steps, "checkpoint.every_steps=5", hold_commit=60) as live:
        live.wait_until((live.notes / HELD).exists, "a commit that is held up")
        node, worker, began = live.node_of(0), live.pid_of(0), time.time()
        rig.cluster.freeze_node(node)
        live.wait_s(_CUT_OFF_S)
        live.wait_until(lambda: len(_leases(live.store)) > 1, "the next attempt")
        (live.notes / LET_GO).touch()
        os.kill(worker, signal.SIGCONT)
        live.wait_until((live.notes / TRIED).exists, "the commit of the old attempt", _CUT_OFF_S)
        rig.cluster.freeze_node(node, is_frozen=False)
        run = live.finish()
    rig.cluster.kill_node(node)
    leases = _leases(run.store)
    entries = CommitLog(run.store).read()
    late = [entry for entry in entries[leases[-1] :] if entry.attempt != entries[leases[-1]].attempt]
    tried = (live.notes / TRIED).read_text()
    exact = rig.is_exact(run)
    found = Outcome(
        f"the node of rank 0 is cut off for {_CUT_OFF_S:g} s",
        exact,
        exact,
        steps_lost=sum(run.lost_steps()),
        detect_s=run.interruptions[0].at_s - began if run.interruptions else None,
        recover_s=seconds_to_recover(run.step_ends, began),
        note=f"the old attempt's commit: {tried}",
    )
    ok = tried == FencedError.__name__ and not late and len(leases) == 2
    return [found.checked(ok, f"{len(leases)} leases", f"late: {late}", run.causes())]


def _leases(store: Store) -> list[int]:
    """Their places in the run's log."""
    return [place for place, entry in enumerate(CommitLog(store).read()) if isinstance(entry, LeaseEntry)]
