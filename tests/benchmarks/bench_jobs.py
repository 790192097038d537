"""What it costs to submit a job by name, beside a bare Ray job, on a head with token authentication on loopback.

Ratios:
    submit_overhead_vs_ray: smaller is better: seconds from the call that submits to the first line of user code, for
        ``Client.submit`` over Ray's own ``JobSubmissionClient.submit_job``; the same cluster, in turns. Ours looks for
        the name in the store, writes its request there, ships its wheel (uploaded and installed once; the first
        submission is told apart), and its first line comes after the imports of the driver.

Floor: the bare job; ``floor_fraction`` is its time over ours.
"""

import os
import tempfile
import time
from datetime import datetime
from pathlib import Path

import above  # noqa: F401 -- for what tests share
import yaml
from support.projects import store_images, write_recipe
from support.ray_head import RayHead, ray_head

from frame import RUNS, BenchResult, Spread, run_bench, significant, tell
from heliostat.config import load_recipe
from heliostat.observe.segments import read_segments
from heliostat.storage.local import LocalStore
from heliostat_jobs import Client
from heliostat_jobs.runs import open_run
from heliostat_jobs.submission import records

_PRINTS_NOW = 'python -c "import time; print(time.time())"'
_POLL_S = 0.05


def ours_s(head: RayHead, root: LocalStore, name: str) -> float:
    """Until the driver of a job of ours says that it begins."""
    recipe = {"kind": "evaluate", "name": name, "root": root.url, "run": "empty", "bank": "tiny", "queries": "tiny"}
    path = Path(root.url) / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    asked_at = time.time()
    handle = Client(head.address).submit(path)
    handle.wait(120)
    first = next(read_segments(handle.job.store, records.log_prefix(1)))
    return datetime.fromisoformat(first["time_utc"]).timestamp() - asked_at


def bare_s(head: RayHead, name: str) -> float:
    """Until the driver of a bare job tells the time."""
    from ray.job_submission import JobSubmissionClient

    asked_at = time.time()
    client = JobSubmissionClient(head.address)
    client.submit_job(entrypoint=_PRINTS_NOW, submission_id=name)
    while not client.get_job_status(name).is_terminal():
        time.sleep(_POLL_S)
    return float(client.get_job_logs(name).strip().splitlines()[-1]) - asked_at


def measure(quick: bool) -> BenchResult:
    """The bench."""
    turns = 2 if quick else RUNS
    with tempfile.TemporaryDirectory(prefix="heliostat-bench-") as folder, ray_head() as head:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(head.token)
        os.environ["RAY_AUTH_MODE"] = "token"
        root = LocalStore(Path(folder))
        store_images(root)
        open_run(load_recipe(write_recipe(Path(folder) / "empty.yaml", root.url), ["name=empty"], {}))
        bare_s(head, "warm-up")
        first_s = ours_s(head, root, "first")
        tell(f"the first submission: {first_s:.2f} s")
        ours, bare = [], []
        for turn in range(turns):
            ours.append(ours_s(head, root, f"turn-{turn}"))
            bare.append(bare_s(head, f"bare-{turn}"))
            tell(f"turn {turn + 1}: {ours[-1]:.2f} s, {bare[-1]:.2f} s without us")
    mine, theirs = Spread(tuple(ours)), Spread(tuple(bare))
    ratio = mine.over(theirs).median
    details = {
        "measured": {"ours_s": mine.summary("s"), "bare_ray_job_s": theirs.summary("s")},
        "first_submission_s": significant(first_s),
    }
    return BenchResult("jobs", {"submit_overhead_vs_ray": ratio}, 1 / ratio, details)


if __name__ == "__main__":
    run_bench("jobs", __doc__, measure)
