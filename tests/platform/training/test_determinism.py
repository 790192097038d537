import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.worlds import tiny_recipe

from heliostat.training.determinism import DETERMINISTIC_ENV
from heliostat.training.trainer import _worker_env

CODE = """
import hashlib, sys
import torch
from support.worlds import Trace, new_networks, tiny_recipe, train
from heliostat.objectives.engine import PlainEngine
from heliostat.training.determinism import make_deterministic

make_deterministic()
recipe = tiny_recipe(deterministic=True)
student, teacher = new_networks(recipe)
trace = train(recipe, PlainEngine(student, recipe.training), range(4), teacher, Trace())
digest = hashlib.sha256()
for tensors in (trace.student, trace.moments, trace.teacher):
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
print(torch.are_deterministic_algorithms_enabled(), digest.hexdigest())
"""


def test_deterministic__two_runs_are_equal_to_the_bit() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    runs = [
        subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    ends = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert ends[0][0] == "True"
    assert ends[0] == ends[1]


@pytest.mark.parametrize("use_gpu", [False, True])
def test_deterministic__workers_know_before_cuda_starts(use_gpu: bool) -> None:
    assert DETERMINISTIC_ENV.items() <= _worker_env(tiny_recipe(deterministic=True), use_gpu).items()
    assert not DETERMINISTIC_ENV.keys() & _worker_env(tiny_recipe(), use_gpu).keys()
