"""Jobs on a real ``ray start --head`` with token authentication, from submission to end, through everything between."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.job_rig import PATIENCE_S, JobRig, has_done, job_rig, wait_until
from faults.job_rows import scenarios
from support.projects import heliostat
from support.seaweedfs import SECRET_KEY

from heliostat.errors import ClusterDeniedError
from heliostat_jobs.kinds import Job
from heliostat_jobs.submission import records
from heliostat_jobs.submission.client import JobState
from heliostat_jobs.submission.ray_jobs import RayJobs

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.timeout(600)]

CANARY = "canary-7b1d5e0c9f"
PAGES = (
    "/api/jobs/",
    "/api/cluster_status",
    "/api/component_activities",
    "/api/v0/actors?detail=1",
    "/api/v0/jobs?detail=1",
    "/api/v0/nodes?detail=1",
    "/api/v0/objects?detail=1",
    "/api/v0/placement_groups?detail=1",
    "/api/v0/runtime_envs?detail=1",
    "/api/v0/tasks?detail=1",
    "/api/v0/tasks/timeline",
    "/api/v0/workers?detail=1",
    "/events",
    "/logical/actors",
    "/nodes?view=summary",
)
"""Of the dashboard: what it tells of jobs, processes and nodes."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRig]:
    with job_rig(tmp_path_factory.mktemp("jobs")) as rig:
        yield rig


def test_job__left_by_its_client_killed_cancelled_and_resumed_equals_one_plain_process(rig: JobRig) -> None:
    scenarios.driver_killed(rig)


def test_submit__of_clients_that_race_one_wins(rig: JobRig) -> None:
    scenarios.two_clients(rig)


def test_submit__a_changed_config_is_refused_with_a_diff_unless_forked(rig: JobRig) -> None:
    scenarios.changed_config(rig)


def test_status__failing_25_times_starts_nothing(rig: JobRig) -> None:
    scenarios.failing_status(rig)


def test_pipeline__whose_controller_dies_starts_each_stage_once_and_hands_on_what_was_made(rig: JobRig) -> None:
    scenarios.controller_killed(rig)
    shown = heliostat("status", "whole", "--root", rig.root.url)
    assert [stage["phase"] for stage in shown["stages"]] == ["succeeded"] * 3


def test_client__wrong_token_no_token_and_dead_head_are_told_apart(
    rig: JobRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rig.broken("refused")
    told = heliostat("submit", str(path), "--address", "http://127.0.0.1:1", expect=3)
    assert told["error"]["code"] == "HS-RUN-008"
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("0" * 64)
    for variables in ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"HOME": str(tmp_path)}):
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        told = heliostat("submit", str(path), "--address", rig.head.address, expect=3)
        assert told["error"]["code"] == ClusterDeniedError.code
    assert records.newest(Job(rig.root, "evaluate", "refused").store) is None


def test_secrets__planted_in_the_environment_and_behind_a_reference_appear_nowhere(
    rig: JobRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(CANARY)
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARY)
    path = rig.pretraining("secretive", 40)
    secret = f"WANDB_API_KEY=file:{tmp_path / 'key'}"
    handle = rig.client().submit(path, secrets=[secret])
    wait_until(lambda: has_done(handle, 1), "the first steps")
    answers = [rig.head.ask(page) for page in PAGES]  # while workers are there
    assert handle.wait(PATIENCE_S).state is JobState.FINISHED, list(handle.logs())[-5:]
    answers += [rig.head.ask(page) for page in PAGES]
    answers.append(RayJobs.at(rig.head.address).log("secretive-1"))
    assert sum("secretive" in answer for answer in answers) >= 4, "the answers are not about this job"
    files = [path for path in rig.head.folder.rglob("*") if path.is_file()]
    objects = [info.key for info in rig.root.list("")]
    assert any("secretive" in str(path) for path in files)
    assert any("secretive" in key for key in objects)
    for planted in (CANARY.encode(), SECRET_KEY.encode()):
        assert [answer for answer in answers if planted.decode() in answer] == []
        assert [path for path in files if path.exists() and planted in path.read_bytes()] == []
        assert [key for key in objects if planted in rig.root.get(key)] == []
