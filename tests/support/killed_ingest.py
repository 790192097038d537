"""A process that ingests a folder and kills itself: ``python killed_ingest.py FOLDER ROOT STAGE DONE``."""

import os
import signal
import sys

from support.plain_source import PlainSource

from heliostat.data.ingest import IngestOptions, IngestProgress, ingest
from heliostat.data.shards import ShardLayout
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray


def main(folder: str, root: str, stage: str, done: str) -> None:
    def kill(progress: IngestProgress) -> None:
        if progress.stage == stage and progress.done >= int(done):
            os.kill(os.getpid(), signal.SIGKILL)

    options = IngestOptions(layout=ShardLayout(group_rows=4, shard_groups=2))
    with local_ray(num_cpus=2):
        ingest(PlainSource(folder), open_store(root), "photos", options, report=kill)


if __name__ == "__main__":
    main(*sys.argv[1:])
