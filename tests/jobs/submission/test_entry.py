"""A driver says how it ended, whatever stops it, and takes on what no other driver has."""

import json
import os
import subprocess
import sys
from pathlib import Path

from heliostat.storage.local import LocalStore
from heliostat_jobs.kinds import Job
from heliostat_jobs.submission import records
from heliostat_jobs.submission.records import Request


def drive(root: LocalStore, **variables: str) -> "subprocess.CompletedProcess[str]":
    what = ["--root", root.url, "--kind", "evaluate", "--name", "some", "--submission", "1", "--package", "x.whl"]
    command = [sys.executable, "-m", "heliostat_jobs.submission.entry", *what]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_entry__without_its_secrets_says_so_and_nobody_takes_it_on_again(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    job = Job(root, "evaluate", "some").store
    request = Request(number=1, submission_id="some-1", address="x", package="x.whl", config={}, text="")
    records.write_request(job, request)
    ended = drive(root, HELIOSTAT_SECRETS=json.dumps({"KEY": "file:/nowhere/key"}))
    end = records.read_end(job, 1)
    assert end is not None, ended.stderr
    assert (end.outcome, end.code, end.exit_code) == ("failed", "HS-CONF-014", ended.returncode)
    assert "/nowhere/key" in end.fact
    again = drive(root)
    assert again.returncode == 1
    assert "another driver has taken this submission on" in again.stderr
    assert records.read_end(job, 1) == end
