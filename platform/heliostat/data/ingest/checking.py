"""The driver's side of the first pass: which units are left to check, and when there is no hope."""

from collections.abc import Sequence

import pyarrow as pa

from heliostat.data.ingest.checked import CHECKED
from heliostat.data.ingest.first_pass import FirstPass
from heliostat.data.ingest.job import IngestProgress, Job
from heliostat.data.ingest.rounds import Tally, tally_of
from heliostat.data.ingest.workspace import parse_checked
from heliostat.data.ray_tasks import run_tasks
from heliostat.data.sources import Unit
from heliostat.errors import TooManyRefusedError

JUDGED_ITEMS = 1000
"""Items after which the quarantined share counts: before, a few bad files in a row say nothing about a source."""


def check_units(job: Job, round_index: int, units: Sequence[Unit], before: Tally) -> tuple[pa.Table, Tally]:
    """Rows of ``CHECKED`` in the order of the source, and what they come to. ``before`` are the rounds before.

    Raises:
        TooManyRefusedError: too large a share of what has been checked so far, in all rounds, is refused.
        StorageError: the source, the store or the local disk does not cooperate.
    """
    found = job.workspace.load_checked(units)
    tally = sum((tally_of(table) for table in found.values()), Tally(resumed=sum(map(len, found.values()))))
    left = [unit for unit in units if unit.index not in found]
    counts = [unit.items for unit in left if unit.items is not None]
    total = sum(counts) if len(counts) == len(left) else None
    done = 0

    def tell() -> None:
        job.report(IngestProgress("check", done, total, before.quarantined + tally.quarantined, round_index))

    if left:
        tell()
    options = job.options
    task = FirstPass(job.source, job.workspace, options.limits, options.resize_px, options.edit, options.decoder_module)
    for index, record in run_tasks(((unit.index, unit.model_dump_json().encode()) for unit in left), task):
        found[index] = parse_checked(record)
        tally += tally_of(found[index])
        done += len(found[index])
        tell()
        stop_if_hopeless(before + tally, options.max_quarantined_share)
    stop_if_hopeless(before + tally, options.max_quarantined_share)  # an earlier start may have checked all of them
    tally += Tally(skipped=sum(unit.skipped for unit in units))
    return pa.concat_tables([CHECKED.empty_table(), *(found[index] for index in sorted(found))]), tally


def stop_if_hopeless(tally: Tally, max_share: float) -> None:
    """Stop an ingest of something that is no collection of images, before hours are spent on it.

    Raises:
        TooManyRefusedError: more than the share is refused, of a thousand items at least.
    """
    if tally.checked >= JUDGED_ITEMS and tally.quarantined > max_share * tally.checked:
        raise TooManyRefusedError(
            f"{tally.quarantined} of {tally.checked} items checked so far are refused, {max_share:.0%} may be "
            f"{tally.in_words()}",
            "Look at the source; with a higher --max-quarantined-share the same command goes on from here",
        )
