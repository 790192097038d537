"""``make chaos``: breaks a running platform in all the ways of the fault matrix, and in random ones, and tells.

CHAOS_SEED (0) seeds everything random, CHAOS_FAULTS (10) is the number of random faults, and names of rows as arguments
choose among them. The last line is one JSON object; the exit code is 1 if any fault was not survived.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faults import frame
from faults.frame import Outcome
from faults.rig import Rig, rig
from faults.rows import bad_wire, dead_feeder, expired_credentials, hostile_images, random_faults, storage_outage

Row = Callable[[Rig], list[Outcome]]

ROWS: dict[str, Row] = {
    "hostile_images": hostile_images.inject,
    "storage_outage": storage_outage.inject,
    "bad_wire": bad_wire.inject,
    "dead_feeder": dead_feeder.inject,
    "expired_credentials": expired_credentials.inject,
    "random": random_faults.inject,
}


def main(names: Sequence[str]) -> int:
    """Run the rows and print what became of them."""
    outcomes: list[Outcome] = []
    seed, faults = int(os.environ.get("CHAOS_SEED", "0")), int(os.environ.get("CHAOS_FAULTS", "10"))
    with (
        tempfile.TemporaryDirectory(prefix="heliostat-chaos-", ignore_cleanup_errors=True) as folder,
        rig(Path(folder), seed, faults) as place,
    ):
        for name in names or ROWS:
            outcomes += _outcomes(name, place)
    print(frame.table(outcomes))
    print(frame.totals(outcomes))
    return 0 if all(outcome.survived for outcome in outcomes) else 1


def _outcomes(name: str, place: Rig) -> list[Outcome]:
    started = time.monotonic()
    try:
        found = ROWS[name](place)
    except Exception as error:  # whatever a row runs into is its outcome, and the other rows go on
        found = [Outcome(name, survived=False, lost=None, repeated=None, note=f"{type(error).__name__}: {error}"[:400])]
    print(f"  {name}: {len(found)} faults in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
