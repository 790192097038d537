"""Random faults of workers and nodes, one after the other; all of them follow from the seed."""

from dataclasses import replace

from faults.frame import Outcome
from faults.plan import random_plan
from faults.spot_rig import SpotRig

_PER_RUN = 10
_FIRST, _APART = 20, 20
_PACE_S = 0.6
"""So that no notice is longer than the steps between two faults take."""


def inject(rig: SpotRig) -> list[Outcome]:
    """As many as were asked for, some on each run."""
    found: list[Outcome] = []
    number = 0
    while len(found) < rig.faults:
        rig.renew()
        plan = random_plan(rig.rng, min(_PER_RUN, rig.faults - len(found)), _FIRST, _APART, rig.workers)
        steps = plan[-1].step + _APART
        with rig.run(f"random-{number}", steps, pace_s=_PACE_S) as live:
            live.carry_out(plan)
            run = live.finish()
        mine = run.outcomes(live.done_at, rig.is_exact(run, steps))
        found += [replace(mine[0], goodput=run.goodput()), *mine[1:]]
        number += 1
    return found
