"""What it costs to be elastic, and what a preemption costs, on a simulated cluster of this machine.

Ratios:
    snapshot_cost: smaller is better: what snapshots every 5 steps add to a step (ViT of 6 blocks of width 192, two
        workers, no sleep: with two cores there is no idle one, as there is beside an accelerator), in blocks of steps
        with and without them in one run. Wanted: at most 0.02.
    elastic_cost: smaller is better: what supervision adds to a step of the same run, over Ray Train without us, run
        after run in turns. Wanted: at most 0.02.
    recovery_vs_stock_ray: seconds from a node's loss to the end of the next step under stock Ray Train, elastic with
        its defaults, over ours.
    goodput: share of the time spent on steps that count, of a run of 1,600 steps padded by sleep to 1.13 s with four
        preemptions, announced 30 s before; the node that goes is replaced half a minute later. Wanted: at least 0.9;
        Ray's published figure for just-in-time checkpoints is 0.68 (ray-project/ray PR 65047). With ``--quick`` a
        quarter of it: 400 steps, one preemption, eight minutes.

Floor: a run without any preemption; ``floor_fraction`` is the padded time of its steps over the time that it took.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import above  # noqa: F401 -- for what tests share
import yaml
from faults.plan import Fault, Kind
from faults.rig import unix
from faults.spot_rig import LiveSpotRun, SpotRig, spot_rig
from faults.spot_run import SpotRun
from support.processes import end_session
from support.worlds import tiny_recipe

from frame import BenchResult, Spread, run_bench, significant, tell
from heliostat.observe.goodput import ledger
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage.layout import run_store
from heliostat_cluster.simulated import WORKER_RESOURCE

_PACE_S = 1.13
_FULL_STEPS, _FULL_PREEMPTIONS = 1600, 4
_NOTICE_S = 30.0
_REPLACED_AFTER_STEPS = 30
_BLOCK_STEPS = 20
_COST_STEPS, _TURN_STEPS = 300, 140
_WARM_UP_STEPS = 60
"""Meanwhile processes are started that stand by for the next attempt, once for each: no steady state."""
_TURNS = 3
_LIMIT_S = 2700.0


def _recipe(
    rig: SpotRig,
    name: str,
    steps: int,
    workers: int,
    checkpoint: Mapping[str, Any] = MappingProxyType({}),
    is_large: bool = False,
) -> Path:
    recipe = json.loads(tiny_recipe(steps=steps, global_batch=12, slot_batch=2).model_dump_json())
    if is_large:
        recipe["model"] |= {"embed_dim": 192, "depth": 6, "heads": 3, "patch_px": 8}
        recipe["augmentation"] |= {"global_px": 64, "local_px": 32}
        recipe["objective"] |= {"prototypes": 1024, "head_hidden": 256, "head_bottleneck": 64}
    recipe |= {"name": name, "root": rig.root.url, "observe": {"flush_interval_s": 0.5}}
    recipe["checkpoint"] = {"every_steps": 1000, **checkpoint}
    recipe["scaling"] = {
        "workers": workers,
        "min_workers": 1,
        "worker_resource": WORKER_RESOURCE,
        "grow_patience_s": 3.0,
        "standby_after_s": 1.0,
    }
    path = rig.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@contextmanager
def _driver(rig: SpotRig, kind: str, recipe: Path, pace_s: float, *flags: str) -> Iterator[LiveSpotRun]:
    notes, log = rig.folder / f"{recipe.stem}-notes", rig.folder / f"{recipe.stem}.log"
    notes.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, str(Path(__file__).with_name("elastic_drivers.py")), kind, rig.cluster.address),
                *(str(recipe), str(notes), "--pace", str(pace_s), *flags),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield LiveSpotRun(rig.cluster, run_store(rig.root, recipe.stem), process, notes, log, pace_s, limit_s=_LIMIT_S)
    finally:
        end_session(process.pid)
        process.wait()


def _step_seconds(rig: SpotRig, name: str) -> list[tuple[int, float]]:
    """Index and duration of each step but the first ones."""
    curve = merged_curve(read_metrics(run_store(rig.root, name)))
    ends = [(line.step, unix(line.time_utc)) for line in curve]
    return [(step, end - before) for (_, before), (step, end) in pairwise(ends) if step >= _WARM_UP_STEPS]


def snapshot_cost(rig: SpotRig) -> Spread:
    """Of pairs of blocks, with over without, less one."""
    recipe = _recipe(rig, "toggled", _COST_STEPS, 2, is_large=True)
    with _driver(rig, "ours", recipe, 0.0, "--toggle", str(_BLOCK_STEPS)) as live:
        live.finish()
    blocks: dict[int, list[float]] = {}
    for step, seconds in _step_seconds(rig, "toggled"):
        blocks.setdefault(step // _BLOCK_STEPS, []).append(seconds)
    means = {number: statistics.mean(values) for number, values in blocks.items() if len(values) == _BLOCK_STEPS}
    # Each block without, against its neighbours: the machine drifts.
    return Spread(
        tuple(
            (means[number - 1] + means[number + 1]) / 2 / means[number] - 1
            for number in sorted(means)
            if number % 2 and {number - 1, number + 1} <= means.keys()
        )
    )


def elastic_cost(rig: SpotRig, turns: int) -> Spread:
    """Of pairs of runs, ours over stock, less one."""
    costs = []
    for turn in range(turns):
        seconds = {}
        for kind in ("ours", "stock"):
            name = f"cost-{kind}-{turn}"
            recipe = _recipe(rig, name, _TURN_STEPS, 2, {"memory_every_steps": 0}, is_large=True)
            with _driver(rig, kind, recipe, 0.0) as live:
                live.end()
            seconds[kind] = statistics.median(value for _, value in _step_seconds(rig, name))
        costs.append(seconds["ours"] / seconds["stock"] - 1)
        tell(f"turn {turn + 1}: a step takes {seconds['ours']:.3f} s, {seconds['stock']:.3f} s without us")
    return Spread(tuple(costs))


def recovery_s(rig: SpotRig, kind: str, turn: int) -> float:
    """From the loss of a node to the end of the next step."""
    rig.renew()
    name = f"recovery-{kind}-{turn}"
    every = {"every_steps": 5} if kind == "stock" else {}
    recipe = _recipe(rig, name, 140, rig.workers, every)
    with _driver(rig, kind, recipe, 0.4) as live:
        live.wait_for_step(100)
        live.do(Fault(100, Kind.KILL_NODE, 1))
        lost_at = live.done_at[0][1]
        lines = live.store
        live.wait_until(lambda: any(_after(line.time_utc, lost_at) for line in read_metrics(lines)), "a step", 200.0)
        ends = sorted(unix(line.time_utc) for line in read_metrics(lines))
    return next(end for end in ends if end > lost_at + 1.0) - lost_at


def _after(time_utc: str, lost_at: float) -> bool:
    return unix(time_utc) > lost_at + 1.0  # a step that was about to end may still be told of


def preempted_run(rig: SpotRig, steps: int, preemptions: int) -> tuple[SpotRun, float]:
    """A run with announced preemptions, evenly spread; and its seconds from the first event to the last."""
    rig.renew()
    recipe = _recipe(rig, "goodput", steps, rig.workers)
    with _driver(rig, "ours", recipe, _PACE_S) as live:
        began = time.monotonic()
        for number in range(preemptions):
            step = (number + 1) * steps // (preemptions + 1)
            live.wait_for_step(step)
            live.do(Fault(step, Kind.DRAIN_NODE, number, _NOTICE_S))
            live.wait_for_step(step + round(_NOTICE_S / _PACE_S) + _REPLACED_AFTER_STEPS)
            live.do(Fault(step, Kind.ADD_NODE))
            tell(f"{number + 1} of {preemptions} preemptions after {time.monotonic() - began:.0f} s")
        run = live.finish()
    spent = ledger(run.lines, run.events)
    return run, spent.wall_s


def measure(quick: bool) -> BenchResult:
    """The bench."""
    steps, preemptions = (_FULL_STEPS // 4, 1) if quick else (_FULL_STEPS, _FULL_PREEMPTIONS)
    measured: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory(prefix="heliostat-bench-") as folder, spot_rig(Path(folder), workers=3) as rig:
        tell(f"goodput: {steps} steps of {_PACE_S} s, {preemptions} preemptions")
        run, wall_s = preempted_run(rig, steps, preemptions)
        seconds = ledger(run.lines, run.events)
        if not quick:
            rig.renew()
            measured["snapshot_cost"] = snapshot_cost(rig)
            measured["elastic_cost"] = elastic_cost(rig, _TURNS)
            for kind in ("ours", "stock"):
                measured[f"recovery_{kind}_s"] = Spread(tuple(recovery_s(rig, kind, turn) for turn in range(_TURNS)))
    ratios: dict[str, float | None] = {
        "snapshot_cost": None if quick else measured["snapshot_cost"].median,
        "elastic_cost": None if quick else measured["elastic_cost"].median,
        "recovery_vs_stock_ray": (
            None if quick else measured["recovery_stock_s"].median / measured["recovery_ours_s"].median
        ),
        "goodput": seconds.goodput,
    }
    units = {"snapshot_cost": "share", "elastic_cost": "share"}
    details = {
        "measured": {name: spread.summary(units.get(name, "s")) for name, spread in measured.items()},
        "goodput_seconds": {str(name): significant(value) for name, value in seconds.seconds.items() if value},
        "goodput_steps_lost": sum(run.lost_steps()),
        "goodput_causes": run.causes(),
        "to_next_step_s": [
            round(each.to_next_step_s, 1) for each in run.interruptions if each.to_next_step_s is not None
        ],
    }
    return BenchResult("elastic", ratios, steps * _PACE_S / wall_s, details)


if __name__ == "__main__":
    run_bench("elastic", __doc__, measure)
