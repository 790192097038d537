"""Rows F1, F3, F4, F8 and F10 of the fault matrix in one run: a worker dies, a node goes, one comes, one is taken."""

from pathlib import Path

import pytest
from faults.plan import parse
from faults.spot_rig import spot_rig
from support.whole_runs import assert_run_equals_plain_training

from heliostat.observe.events import EventType

PLAN = """
at step 20 kill rank 0
at step 50 kill node of rank 1
at step 75 add node
at step 115 drain node of rank 0 after 8 s
"""
STEPS = 160


@pytest.mark.ray
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_run__loses_a_worker_and_two_nodes_and_nothing_else(tmp_path: Path) -> None:
    with spot_rig(tmp_path, workers=3) as rig:
        with rig.run("spot", STEPS) as live:
            live.carry_out(parse(PLAN))
            run = live.finish()
        assert rig.left_behind() == []
    assert run.causes() == ["worker_crash", "node_lost", "resize", "preempted"]
    assert [steps <= limit for steps, limit in zip(run.lost_steps(), [10, 10, 0, 0], strict=True)] == [True] * 4
    assert [event.fields["workers"] for event in run.of_type(EventType.ATTEMPT_STARTED)] == [3, 3, 2, 3, 2]
    assert {event.fields["source"] for event in run.of_type(EventType.RESUMED)} == {"memory", "storage"}
    assert_run_equals_plain_training(rig.root, "spot")
