"""F23, in training: the process that reads and decodes is killed in the middle of the run, twice."""

import os
import signal
import time

from faults.frame import Outcome
from faults.rig import COMMIT_STEPS, Harm, LiveRun, Rig

from heliostat.observe.events import EventType

_TOLD_BY = (EventType.FEEDER_REPLACED,)


def inject(rig: Rig) -> list[Outcome]:
    """SIGKILL at two places, then SIGABRT as a decoder would."""
    with rig.run("feeder") as run:
        harms = []
        for step, kind in ((COMMIT_STEPS // 2, signal.SIGKILL), (2 * COMMIT_STEPS, signal.SIGABRT)):
            run.wait_for_step(step)
            harms.append(kill_feeder(run, kind, f"F23 feeder, {kind.name}"))
        finished = run.finish()
    return rig.judge(finished, harms)


def kill_feeder(run: LiveRun, kind: signal.Signals, name: str) -> Harm:
    """Ends one feeder of one of the workers."""
    pid = min(run.feeders())
    now = time.time()
    os.kill(pid, kind)
    return Harm(name, now, now, _TOLD_BY)
