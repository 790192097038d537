"""F18 and F21: a disk that is full for a while, and a batch that is not finite."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

from faults.frame import Outcome, seconds_to_recover
from faults.spot_rig import SpotRig

from heliostat.observe.events import EventType

_DISK_MIB = 48


def poisoned_batch(rig: SpotRig) -> list[Outcome]:
    """F21: the step is left out, its images are named, and the run goes on."""
    with rig.run("poisoned", rig.steps, poison=60) as live:
        run = live.finish()
    skipped = run.of_type(EventType.STEP_SKIPPED)
    exact = run.manifest.digest_of_ids == rig.undisturbed.manifest.digest_of_ids
    ok = (
        [event.fields["step"] for event in skipped] == [60]
        and not run.causes()
        and bool(skipped[0].fields["sample_ids"])
    )
    note = "" if ok else f"skipped {[event.fields for event in skipped]}, {run.causes()}"
    return [Outcome("a batch that is not finite", exact and ok, recover_s=0.0, note=note)]


def full_disk(rig: SpotRig) -> list[Outcome]:
    """F18: no room for checkpoints for a while; goes on when there is."""
    disk = rig.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        return [Outcome("a full disk", False, None, None, note=f"no disk to fill: {mounted.stderr.strip()}")]
    try:
        return [_fill_and_free(rig, disk)]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill_and_free(rig: SpotRig, disk: Path) -> Outcome:
    (disk / "runs").mkdir()
    runs = rig.folder / "root" / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "full-disk").symlink_to(disk / "runs")
    with rig.run("full-disk", rig.steps, "checkpoint.every_steps=10") as live:
        live.wait_for_step(60)
        began = time.time()
        with (disk / "filler").open("wb") as filler:
            try:
                while True:
                    filler.write(bytes(2**16))
                    filler.flush()
            except OSError:
                pass
        live.wait_s(8.0)
        (disk / "filler").unlink()
        freed = time.time()
        run = live.finish()
    found = Outcome(
        "a full disk for 8 s",
        rig.is_exact(run),
        steps_lost=sum(run.lost_steps()),
        recover_s=max(0.0, seconds_to_recover(run.step_ends, freed) or 0.0),
        note=", ".join(run.causes()) or "no restart",
    )
    ok = set(run.causes()) <= {"storage"} and began < freed
    return found if ok else replace(found, survived=False)
