"""Random faults of the data plane, one after the other, on one run; all of them follow from the seed."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from faults.frame import Outcome
from faults.rig import Harm, LiveRun, Rig
from faults.rows.dead_feeder import kill_feeder
from support.fault_proxy import Rule, weather


def inject(rig: Rig) -> list[Outcome]:
    """As many as were asked for, at random steps in order; what a run's end leaves over goes to the next run."""
    outcomes: list[Outcome] = []
    left = [rig.rng.choice(KINDS) for _ in range(rig.faults)]
    number = 0
    while left:
        harms: list[Harm] = []
        with rig.run(f"random-{number}") as run:
            for step in steps_of(rig.rng, rig.steps, min(len(left), _PER_RUN)):
                run.wait_for_step(step)
                harms.append(left.pop(0)(rig, run))
            finished = run.finish()
        goodput = min(1.0, rig.undisturbed.training_s / finished.training_s)
        found = rig.judge(finished, harms)
        outcomes += [replace(found[0], goodput=goodput), *found[1:]]
        number += 1
    return outcomes


_PER_RUN = 10


def steps_of(rng: random.Random, steps: int, count: int) -> list[int]:
    """Steps at which faults begin: anywhere in the first nine tenths of a run, each in a part of its own."""
    width = steps * 9 // 10 // count
    return [part * width + rng.randrange(width) for part in range(count)]


def _outage(rig: Rig, run: LiveRun) -> Harm:
    seconds = rig.rng.uniform(1, 6)
    began = time.time()
    rig.proxy.refuse()
    time.sleep(seconds)
    rig.proxy.accept()
    return Harm(f"outage of {seconds:.1f} s", began, time.time())


def _weather(rig: Rig, run: LiveRun) -> Harm:
    share, seconds = rig.rng.uniform(0.1, 0.4), rig.rng.uniform(2, 5)
    rig.proxy.plan(chances=weather(rig.rng.randrange(2**31), share))
    return _wait_and_clear(rig, f"{share:.0%} of requests harmed for {seconds:.1f} s", seconds)


def _slow(rig: Rig, run: LiveRun) -> Harm:
    wait_s, seconds = rig.rng.uniform(0.5, 2), rig.rng.uniform(2, 5)
    rig.proxy.plan(Rule("latency", times=None, amount=wait_s))
    return _wait_and_clear(rig, f"latency of {wait_s:.1f} s for {seconds:.1f} s", seconds)


def _expired(rig: Rig, run: LiveRun) -> Harm:
    seconds = rig.rng.uniform(1, 6)
    rig.proxy.plan(Rule("expired", times=None))
    return _wait_and_clear(rig, f"credentials expired for {seconds:.1f} s", seconds)


def _dead_feeder(rig: Rig, run: LiveRun) -> Harm:
    kind = rig.rng.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
    return kill_feeder(run, kind, f"feeder, {kind.name}")


def _wait_and_clear(rig: Rig, name: str, seconds: float) -> Harm:
    began = time.time()
    time.sleep(seconds)
    rig.proxy.plan()
    return Harm(name, began, time.time())


KINDS: list[Callable[[Rig, LiveRun], Harm]] = [_outage, _weather, _slow, _expired, _dead_feeder]
