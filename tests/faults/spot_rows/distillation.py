"""F3 and F4 while two students, one of them convolutional, learn from one teacher: a node vanishes, one is to go."""

from pathlib import Path

import yaml
from faults.frame import Outcome
from faults.plan import parse
from faults.spot_rig import TOLERANCE, SpotRig
from support.distilling import students_of

_PLAN = """
at step 20 kill node of rank 2
at step 50 drain node of rank 1 after 8 s
"""
_STEPS = 80
_TEACHER = "teacher"


def two_students(rig: SpotRig) -> list[Outcome]:
    """The students are those of a run that nothing was done to."""
    with rig.run(_TEACHER, 4) as live:
        live.finish()
    recipe = _recipe(rig.folder)
    with rig.run("students-undisturbed", _STEPS, recipe=recipe) as live:
        truth = live.finish()
    with rig.run("students", _STEPS, recipe=recipe) as live:
        live.carry_out(parse(_PLAN))
        run = live.finish()
    distance = run.distance(truth)
    same_ids = run.manifest.digest_of_ids == truth.manifest.digest_of_ids
    is_exact = same_ids and run.steps == truth.steps and distance <= TOLERANCE
    ok = truth.causes() == [] and run.causes() == ["node_lost", "preempted"]
    found = run.outcomes(live.done_at, is_exact)
    return [each.noted(f"two students, {distance:.1e} from the truth").checked(ok, run.causes()) for each in found]


def _recipe(folder: Path) -> Path:
    """As the rig has written that of the teacher."""
    pretrain = yaml.safe_load((folder / f"{_TEACHER}.yaml").read_text())
    path = folder / "students.yaml"
    tree = students_of(pretrain, _TEACHER, steps=_STEPS)
    tree["students"] = [each for each in tree["students"] if each["name"] in ("small", "conv")]
    path.write_text(yaml.safe_dump(tree))
    return path
