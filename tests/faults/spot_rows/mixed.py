"""One plan of everything, under both stages of ZeRO: workers die, a node is taken, one comes, one vanishes."""

from faults.frame import Outcome
from faults.plan import parse
from faults.spot_rig import SpotRig

_PLAN = """
at step 20 kill rank 0
at step 40 kill rank 1
at step 60 drain node of rank 1 after 8 s
at step 85 add node
at step 125 kill node of rank 2
"""
_CAUSES = ["worker_crash", "worker_crash", "preempted", "resize", "node_lost"]


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
    ok = run.causes() == _CAUSES
    note = f"ZeRO {stage}, {rig.distance(run):.1e} from the truth"
    found = run.outcomes(live.done_at, rig.is_exact(run))
    return [each.noted(note).checked(ok, run.causes()) for each in found]
