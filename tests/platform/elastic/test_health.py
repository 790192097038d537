from dataclasses import replace

import numpy as np
import pytest

from heliostat.elastic.health import hung_ranks, stragglers
from heliostat.elastic.signals import RECENT_STEPS, Pulse

PULSE = Pulse(
    attempt=1,
    steps_done=10,
    beat=40,
    silent_s=0.5,
    has_trained=True,
    longest_s=1.0,
    local_s=(0.3,),
    step_s=1.0,
    save_s=0.1,
    lost_holder=False,
)
STILL = replace(PULSE, silent_s=26.0)


@pytest.mark.parametrize(
    ("pulses", "unheard_s", "hung"),
    [
        ([], [], []),
        ([PULSE, PULSE], [0.3, 0.3], []),
        ([PULSE, PULSE], [0.3, 26], []),  # does not answer, but the other one moves: it cannot be stuck
        ([replace(STILL, silent_s=24)] * 2, [0.1, 0.1], []),
        ([STILL, PULSE], [0.1, 25.6], [1]),  # stopped: silent, and the others wait for it
        ([STILL, replace(STILL, beat=39)], [0.1, 0.1], [1]),  # stuck, though its process answers
        ([STILL, STILL], [0.1, 0.1], [0, 1]),  # nobody is behind: all in one collective that never ends
        ([replace(STILL, longest_s=14.0)] * 2, [0.1, 0.1], []),  # a run whose pauses are that long
        ([replace(STILL, longest_s=12.0)] * 2, [0.1, 0.1], [0, 1]),
        ([replace(STILL, has_trained=False), STILL], [0.1, 0.1], []),  # still compiling
        ([replace(STILL, has_trained=False, silent_s=901)] * 2, [0.1, 0.1], [0, 1]),
        ([STILL, replace(PULSE, silent_s=3)], [0.1, 0.1], []),  # one waits long for another that works
    ],
)
def test_hung_ranks__table(pulses: list[Pulse], unheard_s: list[float], hung: list[int]) -> None:
    found = hung_ranks(dict(enumerate(pulses)), dict(enumerate(unheard_s)), hang_s=25, start_patience_s=900)
    assert sorted(found) == hung
    assert all(seconds >= 25 for seconds in found.values())


@pytest.mark.parametrize(
    ("means_s", "named"),
    [
        ([0.3], {}),
        ([0.3, 0.3, 0.3], {}),
        ([0.3, 0.32, 0.3], {}),
        ([0.3, 0.6, 0.3], {1: 2.0}),
        ([0.6, 0.3], {0: 2.0}),
        ([0.001, 0.01, 0.001], {}),  # ten times nothing
        ([0.3, 0.5, 0.9], {2: 2.32}),  # against the middle of the others
    ],
)
def test_stragglers__table(means_s: list[float], named: dict[int, float]) -> None:
    steps = [[mean_s * (1.02 if step % 2 else 1 / 1.02) for step in range(RECENT_STEPS)] for mean_s in means_s]
    assert stragglers(steps) == pytest.approx(named, rel=0.03)
    assert stragglers([each[1:] for each in steps]) == {}


@pytest.mark.parametrize(("slower", "noise"), [(1.5, 0.2), (1.6, 0.3), (2.0, 0.45)])
def test_stragglers__tell_a_slow_worker_from_a_busy_machine(slower: float, noise: float) -> None:
    """Of 200 runs: how many name the slow worker within 20 steps, and how many anybody in 60 steps before."""
    rng = np.random.default_rng(0)
    in_time = wrong = 0
    for _ in range(200):
        steps = 0.15 * np.exp(noise * rng.normal(size=(3, 80)))
        steps[1, 60:] *= slower
        looks = [stragglers(steps[:, end - RECENT_STEPS : end].tolist()) for end in range(RECENT_STEPS, 81)]
        wrong += any(looks[: 60 - RECENT_STEPS + 1])
        in_time += any(1 in look for look in looks[60 - RECENT_STEPS + 1 :])
    assert in_time >= 180
    assert wrong <= 10
