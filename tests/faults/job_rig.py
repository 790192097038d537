"""Where jobs are submitted to and broken: a ``ray start --head`` with token authentication, and a root with images.

The root is on a real S3 server, which clients, drivers and workers reach through the fault proxy.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fault_proxy import FaultProxy
from support.processes import descends_from, titled
from support.projects import store_images, write_recipe
from support.ray_head import RayHead, ray_head
from support.seaweedfs import BUCKET, s3_environment, s3_server
from support.whole_runs import assert_run_equals_plain_training

from heliostat.config import load_recipe
from heliostat.storage import Store, open_store
from heliostat_jobs import Client, JobHandle
from heliostat_jobs.runs import open_run
from heliostat_jobs.submission import records
from heliostat_jobs.submission.client import JobState, find

PATIENCE_S = 180.0
_DRIVER = "python -m heliostat_jobs.submission.entry"


@dataclass
class JobRig:
    """See the module."""

    head: RayHead
    root: Store
    wire: FaultProxy
    folder: Path

    def client(self) -> Client:
        """Of the head."""
        return Client(self.head.address)

    def pretraining(self, name: str, steps: int) -> Path:
        """A recipe of a tiny run."""
        path = write_recipe(self.folder / f"{name}.yaml", self.root.url, steps=steps)
        recipe = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**recipe, "name": name}))
        return path

    def broken(self, name: str, **more: Any) -> Path:
        """A recipe of a job that begins, says what is wrong, and ends: its run has no checkpoint."""
        recipe = {"kind": "evaluate", "name": name, "root": self.root.url, "run": "empty"}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "bank": "tiny", "queries": "tiny", **more}))
        return path

    def pipeline(self, name: str) -> Path:
        """Of a run, its evaluation and its export."""
        self.pretraining("train", 3)
        judge = {"kind": "evaluate", "name": "x", "run": "x", "bank": "tiny", "queries": "tiny"}
        (self.folder / "judge.yaml").write_text(yaml.safe_dump({**judge, "knn": {"neighbours": [3]}}))
        (self.folder / "export.yaml").write_text(yaml.safe_dump({"kind": "export", "name": "x"}))
        stages = [
            {"name": "train", "recipe": "train.yaml"},
            {"name": "judge", "recipe": "judge.yaml", "from": "train.last"},
            {"name": "export", "recipe": "export.yaml", "from": "train.best"},
        ]
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"kind": "pipeline", "name": name, "root": self.root.url, "stages": stages}))
        return path

    def find(self, name: str) -> JobHandle:
        """A job by its name."""
        return find(self.root.url, name)

    def driver(self, name: str) -> int:
        """Process of a job's driver."""
        (pid,) = (pid for pid, title in titled((_DRIVER,)) if f"--name {name} " in title and _is_own(pid))
        return pid

    def submissions(self, name: str) -> list[str]:
        """Ids of all submissions of a job."""
        return [each.request.submission_id for each in records.read_submissions(self.find(name).job.store)]

    def assert_exact(self, name: str) -> None:
        """Whether a finished run is what one plain process makes of it."""
        assert_run_equals_plain_training(self.root, name)


def _is_own(pid: int) -> bool:
    return descends_from(pid, os.getpid())


def wait_until(holds: Callable[[], bool], what: str = "what was waited for") -> None:
    """Until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {PATIENCE_S:g} s")
        time.sleep(0.2)


def is_running(handle: JobHandle) -> bool:
    """Whether the cluster says so."""
    return handle.status().state is JobState.RUNNING


def has_done(handle: JobHandle, steps: int) -> bool:
    """Whether a run has told of so many steps."""
    words = handle.status().progress.replace(",", "").replace("/", " ").split()
    return "step" in words and int(words[words.index("step") + 1]) >= steps


@contextmanager
def job_rig(folder: Path) -> Iterator[JobRig]:
    """A rig; the environment leads to its root, and to its token once there is one."""
    folder.mkdir(exist_ok=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(folder / "s3") as server,
        FaultProxy(server).running() as wire,
    ):
        for name, value in s3_environment(wire.endpoint).items():
            patch.setenv(name, value)
        with ray_head() as head:
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
            patch.setenv("RAY_AUTH_MODE", "token")
            rig = JobRig(head, open_store(f"s3://{BUCKET}/jobs"), wire, folder)
            store_images(rig.root)
            open_run(load_recipe(rig.pretraining("empty", 1), [], {}))
            yield rig
