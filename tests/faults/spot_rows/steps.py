"""F18 and F21: a disk that is full for a while, and a batch that is not finite."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from faults.frame import Outcome, seconds_to_recover
from faults.rig import unix
from faults.spot_rig import SpotRig
from faults.spot_run import SpotRun

from heliostat.observe.events import EventType

_DISK_MIB = 48
_FULL_S, _SAVE_STEPS = 8.0, 2
"""Long enough for a save to fall due on a busy machine too, where a step takes seconds."""
_WELL_BEFORE_S = 1.0
"""Far longer than a save takes that nothing hinders."""


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
    found = Outcome("a batch that is not finite", exact, exact, recover_s=0.0)
    return [found.checked(ok, [event.fields for event in skipped], run.causes())]


def full_disk(rig: SpotRig) -> list[Outcome]:
    """F18: no room for checkpoints for a while; goes on when there is."""
    disk = rig.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        return [Outcome("a full disk", False, False, note=f"no disk to fill: {mounted.stderr.strip()}")]
    try:
        return _fill_and_free(rig, disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill_and_free(rig: SpotRig, disk: Path) -> list[Outcome]:
    (disk / "runs").mkdir()
    runs = rig.folder / "root" / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "full-disk").symlink_to(disk / "runs")
    with rig.run("full-disk", rig.steps, f"checkpoint.every_steps={_SAVE_STEPS}") as live:
        live.wait_for_step(60)
        full_until = time.time() + _FULL_S
        while time.time() < full_until:
            _fill(disk / "filler")  # again and again: an old checkpoint that goes makes room
            live.wait_s(0.2)
        (disk / "filler").unlink()
        freed = time.time()
        run = live.finish()
    exact = rig.is_exact(run)
    found = Outcome(
        f"a full disk for {_FULL_S:g} s",
        exact,
        exact,
        steps_lost=sum(run.lost_steps()),
        recover_s=max(0.0, seconds_to_recover(run.step_ends, freed) or 0.0),
        note=", ".join(run.causes()) or "no restart",
    )
    return [found.checked(set(run.causes()) <= {"storage"} and _was_hindered(run, freed), "no save that had to wait")]


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(2**12))


def _was_hindered(run: SpotRun, freed: float) -> bool:
    """Whether a save failed for the disk, or one that began well before there was room came to its end after that."""
    ended = [(unix(event.time_utc), event.fields["total_s"]) for event in run.of_type(EventType.CHECKPOINT_COMMITTED)]
    return bool(run.causes()) or any(at - total_s < freed - _WELL_BEFORE_S and freed < at for at, total_s in ended)
