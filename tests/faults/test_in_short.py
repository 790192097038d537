"""One run that loses its storage for a while, and a process that decodes: two rows of ``make chaos`` in short."""

import random
import signal
import time
from pathlib import Path

import pytest
from faults.rig import GLOBAL_BATCH, Rig
from faults.rows.dead_feeder import kill_feeder
from support.fault_proxy import FaultProxy, Rule

from heliostat.observe.events import EventType

_OUTAGE_S = 8.0
_STEPS, _LATE_STEP = 96, 40


@pytest.mark.ray
@pytest.mark.alone
@pytest.mark.s3
@pytest.mark.timeout(600)
def test_run__outlives_its_storage_and_a_feeder_with_an_exact_ledger(
    tmp_path: Path, fault_proxy: FaultProxy, s3_root: str
) -> None:
    rig = Rig(tmp_path, s3_root, fault_proxy, random.Random(0), steps=_STEPS, workers=1)
    late = rig.shard_of(_LATE_STEP * GLOBAL_BATCH)  # held up, so that the run needs storage during the outage
    fault_proxy.plan(Rule("latency", "GET", contains=late, times=None, amount=3600))
    with rig.run("short") as run:
        run.wait_for_step(8)
        run.wait_until(lambda: fault_proxy.faults["latency"] > 0, "a read that is held up")
        fault_proxy.refuse()
        fault_proxy.plan()
        time.sleep(_OUTAGE_S)
        fault_proxy.accept()
        run.wait_for_step(_LATE_STEP)
        kill_feeder(run, signal.SIGKILL, "feeder")
        finished = run.finish()
    assert finished.digest_of_ids == rig.planned_digest()
    assert finished.steps == list(range(_STEPS))
    assert finished.attempts == 1
    told = {event.type for event in finished.events}
    assert EventType.FEEDER_REPLACED in told
    assert not told & {EventType.RESUMED, EventType.STEP_SKIPPED}
    assert sum(line.values.get("data_retries") or 0 for line in finished.lines) > 0
