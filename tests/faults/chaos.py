"""``make chaos``: breaks a running platform in all the ways of the fault matrix, and in random ones, and tells.

CHAOS_SEED (0) seeds everything random, CHAOS_FAULTS (10) is the number of random faults, and names of rows as arguments
choose among them. The last line is one JSON object; the exit code is 1 if any fault was not survived, or a run was
interrupted without one.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from faults import frame
from faults.frame import Outcome
from faults.job_rig import JobRig, job_rig
from faults.job_rows import scenarios
from faults.job_rows.rows import row
from faults.rig import Rig, rig
from faults.rows import (
    bad_wire,
    dead_feeder,
    expired_credentials,
    hostile_images,
    killed_curation,
    random_faults,
    storage_outage,
)
from faults.spot_rig import SpotRig, spot_rig
from faults.spot_rows import distillation, mixed, nodes, notices, processes, random_plan, steps

Row = Callable[[Rig], list[Outcome]]
SpotRow = Callable[[SpotRig], list[Outcome]]
JobRow = Callable[[JobRig], list[Outcome]]

ROWS: dict[str, Row] = {
    "hostile_images": hostile_images.inject,
    "storage_outage": storage_outage.inject,
    "bad_wire": bad_wire.inject,
    "dead_feeder": dead_feeder.inject,
    "expired_credentials": expired_credentials.inject,
    "killed_curation": killed_curation.inject,
    "random": random_faults.inject,
}

SPOT_ROWS: dict[str, SpotRow] = {
    "worker_deaths": processes.deaths,
    "worker_hang": processes.hang,
    "straggler": processes.straggler,
    "node_loss": nodes.loss,
    "node_loss_at_start": nodes.loss_at_start,
    "all_nodes_lost": nodes.all_lost,
    "growth": nodes.growth,
    "flapping_node": nodes.flapping,
    "partition": nodes.partition,
    "notices": notices.in_time,
    "early_reclaim": notices.too_early,
    "false_alarm": notices.false_alarm,
    "two_notices": notices.two_at_once,
    "poisoned_batch": steps.poisoned_batch,
    "full_disk": steps.full_disk,
    "two_students": distillation.two_students,
    "mixed_zero_2": mixed.zero_2,
    "mixed_zero_3": mixed.zero_3,
    "random_spot": random_plan.inject,
}
JOB_ROWS: dict[str, JobRow] = {
    "driver_killed": row("client and driver of a job killed", scenarios.driver_killed),
    "head_killed": row("head of the cluster killed and started again", scenarios.head_killed),
    "controller_killed": row("controller of a pipeline killed", scenarios.controller_killed),
    "controller_killed_everywhere": row(
        "controller of a pipeline killed after every write", scenarios.controller_killed_everywhere
    ),
    "two_clients": row("four clients submit one name at once", scenarios.two_clients),
    "failing_status": row("25 looks at a healthy job fail", scenarios.failing_status),
    "changed_config": row("another configuration under the same name", scenarios.changed_config),
}
_WORKERS = 3
_SHARE_OF_DATA = 4
"""One random fault of so many is one of the data plane."""


def main(names: Sequence[str]) -> int:
    """Run the rows and print what became of them."""
    outcomes: list[Outcome] = []
    seed, faults = int(os.environ.get("CHAOS_SEED", "0")), int(os.environ.get("CHAOS_FAULTS", "10"))
    of_data = faults // _SHARE_OF_DATA
    known = [*ROWS, *SPOT_ROWS, *JOB_ROWS]
    chosen = names or known
    if unknown := set(chosen) - set(known):
        print(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="heliostat-chaos-", ignore_cleanup_errors=True) as folder:
        if any(name in ROWS for name in chosen):
            with rig(Path(folder), seed, of_data) as place:
                for name in [name for name in chosen if name in ROWS]:
                    outcomes += _outcomes(name, partial(ROWS[name], place))
        if any(name in SPOT_ROWS for name in chosen):
            with spot_rig(Path(folder), _WORKERS, seed, faults - of_data) as spot:
                for name in [name for name in chosen if name in SPOT_ROWS]:
                    outcomes += _outcomes(name, partial(_on_whole_cluster, SPOT_ROWS[name], spot))
                if left := spot.left_behind():
                    note = f"left behind: {', '.join(left)}"
                    outcomes.append(Outcome("end of all runs", survived=False, is_exact=True, note=note))
        if any(name in JOB_ROWS for name in chosen):
            with job_rig(Path(folder) / "jobs") as jobs:
                for name in [name for name in chosen if name in JOB_ROWS]:
                    outcomes += _outcomes(name, partial(JOB_ROWS[name], jobs))
    print(frame.table(outcomes))
    print(frame.totals(outcomes))
    return 0 if frame.is_passed(outcomes) else 1


def _on_whole_cluster(row: SpotRow, spot: SpotRig) -> list[Outcome]:
    spot.renew()
    return row(spot)


def _outcomes(name: str, row: Callable[[], list[Outcome]]) -> list[Outcome]:
    started = time.monotonic()
    try:
        found = row()
    except Exception as error:  # whatever a row runs into is its outcome, and the other rows go on
        found = [Outcome(name, survived=False, is_exact=False, note=f"{type(error).__name__}: {error}"[:400])]
    print(f"  {name}: {len(found)} faults in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
