"""F17: the wire harms one request in ten: refusals, cut and lengthened bodies, flipped bytes, lists of the past."""

import time
from collections import Counter
from dataclasses import replace

from faults.frame import Outcome
from faults.rig import Harm, Rig
from support.fault_proxy import Rule, weather

_SHARE = 0.1
_FLIPPED_SHARDS = 8
"""Their first two reads come with a flipped bit; after a third one of the same bytes they would be called corrupt."""


def inject(rig: Rig) -> list[Outcome]:
    """Bad weather from the run's first request to its last."""
    before = Counter(rig.proxy.faults)
    shards = rig.rng.sample(rig.dataset.shards, _FLIPPED_SHARDS)
    flips = [Rule("flip", "GET", contains=shard.key, times=2, amount=1000) for shard in shards]
    stale = Rule("stale_list", "GET", contains="list-type=2", times=None)  # every list is that of the time before
    rig.proxy.plan(*flips, stale, chances=weather(rig.rng.randrange(2**31), _SHARE))
    began = time.time()
    with rig.run("wire") as run:
        finished = run.finish()
    harmed = Counter(rig.proxy.faults) - before
    retries = sum(line.values.get("data_retries") or 0 for line in finished.lines)
    if not (harmed["flip"] and harmed["stale_list"] and retries):
        raise AssertionError(f"too little was harmed: {dict(harmed)}, {retries:g} retries of reads")
    (outcome,) = rig.judge(finished, [Harm("F17 cut, flipped, refused, stale", began, began)])
    return [
        replace(
            outcome,
            recover_s=None,
            note=outcome.note or f"{harmed.total()} requests harmed, {retries:g} reads repeated",
        )
    ]
