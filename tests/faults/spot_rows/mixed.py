"""One plan of everything, under both stages of ZeRO: workers die, a node is taken, one comes, one vanishes."""

from dataclasses import replace

from faults.frame import Outcome
from faults.plan import parse
from faults.spot_rig import SpotRig
from faults.spot_run import outcomes

_PLAN = """
at step 20 kill rank 0
at step 40 kill rank 1
at step 60 drain node of rank 1 after 8 s
at step 85 add node
at step 125 kill node of rank 2
"""
_CAUSES = ["worker_crash", "worker_crash", "preempted", "resize", "node_lost"]
_MAY_LOSE = [10, 10, 0, 0, 10]


def zero_2(rig: SpotRig) -> list[Outcome]:
    """Parameters, gradients whole; the optimizer's state in parts."""
    return _inject(rig, 2)


def zero_3(rig: SpotRig) -> list[Outcome]:
    """Everything in parts."""
    return _inject(rig, 3)


def _inject(rig: SpotRig, stage: int) -> list[Outcome]:
    with rig.run(f"mixed-zero-{stage}", rig.steps, f"training.zero_stage={stage}") as live:
        live.carry_out(parse(_PLAN))
        run = live.finish()
    lost = run.lost_steps()
    ok = run.causes() == _CAUSES and all(a <= b for a, b in zip(lost, _MAY_LOSE, strict=True))
    note = f"ZeRO {stage}, {rig.distance(run):.1e} from the truth"
    return [
        replace(each, survived=each.survived and ok, note=note if ok else f"seen: {run.causes()}, {lost}")
        for each in outcomes(run, live.done_at, rig.is_exact(run))
    ]
