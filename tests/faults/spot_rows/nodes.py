"""F3, F9, F10, F11 and F19: nodes vanish, all of them, come, flap, and are cut off."""

import time
from dataclasses import replace

from faults.frame import Outcome, seconds_to_recover
from faults.plan import parse
from faults.rig import unix
from faults.spot_rig import SpotRig
from faults.spot_run import outcomes

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, LeaseEntry
from heliostat.observe.events import EventType

_ABSENCE_S = 30.0
_FLAPS, _UP_S, _DOWN_S, _FLAPPING_STEPS = 8, 12.0, 8.0, 450


def loss(rig: SpotRig) -> list[Outcome]:
    """F3: one node vanishes."""
    with rig.run("loss", rig.steps) as live:
        live.carry_out(parse("at step 60 kill node of rank 1"))
        run = live.finish()
    ok = run.causes() == ["node_lost"]
    return [_checked(each, ok, run.causes()) for each in outcomes(run, live.done_at, rig.is_exact(run))]


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
        steps_lost=sum(run.lost_steps()),
        detect_s=unix(run.of_type(EventType.INTERRUPTED)[0].time_utc) - began,
        recover_s=seconds_to_recover(run.step_ends, came),
        note="recovery from when nodes came; snapshots went with the nodes",
    )
    return [_checked(found, ok, run.causes())]


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
    return [_checked(Outcome("a node comes", rig.is_exact(run), recover_s=grown_s, note=note), ok, run.causes())]


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
    return [
        _checked(
            Outcome(f"a node flaps {_FLAPS} times", rig.is_exact(run, _FLAPPING_STEPS), note=note), ok, run.causes()
        )
    ]


def partition(rig: SpotRig) -> list[Outcome]:
    """F19: rank 0's node does not answer for 20 s and comes back: nothing of the old attempt may count any more."""
    with rig.run("partition", rig.steps) as live:
        live.wait_for_step(60)
        node, began = live.node_of(0), time.time()
        rig.cluster.freeze_node(node)
        live.wait_s(20.0)
        rig.cluster.freeze_node(node, is_frozen=False)
        run = live.finish()
    rig.cluster.kill_node(node)
    entries = CommitLog(run.store).read()
    leases = [number for number, entry in enumerate(entries) if isinstance(entry, LeaseEntry)]
    late = [
        entry for entry in entries[leases[-1] :] if isinstance(entry, CheckpointEntry) and entry.attempt < len(leases)
    ]
    detect_s = unix(run.of_type(EventType.INTERRUPTED)[0].time_utc) - began if run.causes() else None
    found = Outcome(
        "the node of rank 0 is cut off for 20 s",
        rig.is_exact(run),
        steps_lost=sum(run.lost_steps()),
        detect_s=detect_s,
        recover_s=seconds_to_recover(run.step_ends, began),
        note="",
    )
    return [_checked(found, not late and len(leases) == 2, [f"{len(leases)} leases, late commits: {late}"])]


def _checked(found: Outcome, ok: bool, seen: object) -> Outcome:
    return found if ok else replace(found, survived=False, note=f"{found.note} seen: {seen}")
