"""F1, F2 and F20: workers die, hang or crawl."""

import os
import signal
import threading
import time

from faults.frame import Outcome
from faults.plan import parse
from faults.rig import unix
from faults.spot_rig import SpotRig

from heliostat.observe.events import EventType

_HANG_LIMIT_S = 30.0
_STRAGGLER_LIMIT_STEPS = 20


def deaths(rig: SpotRig) -> list[Outcome]:
    """F1: each rank once. The number of workers never changes, so every bit has to be the same."""
    with rig.run("deaths", rig.steps) as live:
        live.carry_out(parse("at step 40 kill rank 0; at step 80 kill rank 1; at step 120 kill rank 2"))
        run = live.finish()
    ok = run.causes() == ["worker_crash"] * len(live.done_at)
    same = run.equals_bitwise(rig.undisturbed)
    return [each.checked(ok, run.causes()) for each in run.outcomes(live.done_at, same)]


def hang(rig: SpotRig) -> list[Outcome]:
    """F2: seen within 30 s, with the stacks of all workers."""
    with rig.run("hang", rig.steps) as live:
        live.carry_out(parse("at step 60 stop rank 1"))
        run = live.finish()
    (found,) = run.outcomes(live.done_at, rig.is_exact(run))
    detected = run.of_type(EventType.HANG_DETECTED)
    in_time = found.detect_s is not None and found.detect_s <= _HANG_LIMIT_S
    has_stacks = bool(detected) and b"== worker 2" in run.store.get(detected[0].fields["stacks"])
    ok = run.causes() == ["hang"] and in_time and has_stacks
    return [found.checked(ok, run.causes(), f"stacks: {has_stacks}")]


def straggler(rig: SpotRig) -> list[Outcome]:
    """F20: a worker that is stopped half of the time is named within 20 steps, and left alone."""
    with rig.run("straggler", rig.steps) as live:
        live.wait_for_step(40)
        pid, began = live.pid_of(1), time.time()
        ended = threading.Event()
        thread = threading.Thread(target=_hamper, args=(pid, ended))
        thread.start()
        live.wait_for_step(40 + 2 * _STRAGGLER_LIMIT_STEPS)
        ended.set()
        thread.join()
        run = live.finish()
    named = [event for event in run.of_type(EventType.STRAGGLER_NAMED) if unix(event.time_utc) > began]
    until = named[0].time_utc if named else "9"
    steps = [line.step for line in run.lines if began < unix(line.time_utc) and line.time_utc <= until]
    ok = bool(named) and named[0].fields["worker"] == 1 and len(steps) <= _STRAGGLER_LIMIT_STEPS and not run.causes()
    detect_s = unix(named[0].time_utc) - began if named else None
    exact = rig.is_exact(run)
    found = Outcome("worker 1 at half speed", exact, exact, detect_s=detect_s, recover_s=0.0)
    found = found.noted(f"named after {len(steps)} steps" if named else "not named")
    return [found.checked(ok, [each.fields for each in named], run.causes())]


def _hamper(pid: int, ended: threading.Event) -> None:
    while not ended.is_set():
        os.kill(pid, signal.SIGSTOP)
        ended.wait(0.05)
        os.kill(pid, signal.SIGCONT)
        ended.wait(0.05)
