"""F16: storage is away for a minute in the middle of an epoch, while training has run dry of images."""

import time

from faults.frame import Outcome
from faults.rig import COMMIT_STEPS, GLOBAL_BATCH, Harm, Rig
from support.fault_proxy import Rule

from heliostat.observe.events import EventType

NAME = "F16 storage outage"
OUTAGE_S = 60.0
_LATE_STEP = 80
"""Its images are held up until the outage, so that the run needs storage during it however far it reads ahead."""


def inject(rig: Rig) -> list[Outcome]:
    """An outage of a minute, from the first checkpoint on."""
    late = rig.shard_of(_LATE_STEP * GLOBAL_BATCH)
    rig.proxy.plan(Rule("latency", "GET", contains=late, times=None, amount=3600))
    with rig.run("outage") as run:
        run.wait_for_commit(COMMIT_STEPS)
        run.wait_until(lambda: rig.proxy.faults["latency"] > 0, "a read that is held up")
        began = time.time()
        rig.proxy.refuse(OUTAGE_S)
        rig.proxy.plan()
        finished = run.finish()
    told = {event.type for event in finished.events}
    missing = {EventType.DATA_STALLED, EventType.DATA_RESUMED} - told
    if missing:
        raise AssertionError(f"the run did not tell of {sorted(missing)}")
    harm = Harm(f"{NAME} of {OUTAGE_S:g} s", began, began + OUTAGE_S, [EventType.DATA_STALLED])
    return rig.judge(finished, [harm])
