"""Jobs on a real ``ray start --head`` with token authentication, from submission to end, through everything between."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from support.fault_proxy import FaultProxy, Rule
from support.processes import descends_from, end_session, titled
from support.projects import command, heliostat, store_images, write_recipe
from support.ray_head import RayHead, ray_head
from support.whole_runs import assert_run_equals_plain_training

from heliostat.errors import ChangedConfigError, ClusterDeniedError, ClusterUnreachableError
from heliostat.storage.local import LocalStore
from heliostat_jobs import Client, JobHandle
from heliostat_jobs.kinds import Job
from heliostat_jobs.submission import records
from heliostat_jobs.submission.client import JobState, find
from heliostat_jobs.submission.ray_jobs import RayJobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CANARY = "canary-7b1d5e0c9f"
_PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


@pytest.fixture(autouse=True)
def _with_token(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    root = LocalStore(tmp_path_factory.mktemp("root"))
    store_images(root)
    return root


def recipe_of(root: LocalStore, folder: Path, name: str, **training: object) -> Path:
    path = write_recipe(folder / f"{name}.yaml", root.url, **training)
    recipe = yaml.safe_load(path.read_text())
    recipe["name"] = name
    path.write_text(yaml.safe_dump(recipe))
    return path


def broken_recipe(root: LocalStore, folder: Path, name: str, neighbours: int = 3) -> Path:
    """Of a job that begins, says what is wrong, and ends: there is no such run."""
    path = folder / f"{name}.yaml"
    of_what = {"run": "nothing", "bank": "tiny", "queries": "tiny", "knn": {"neighbours": [neighbours]}}
    path.write_text(yaml.safe_dump({"kind": "evaluate", "name": name, "root": root.url, **of_what}))
    return path


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def has_trained(handle: JobHandle, steps: int) -> bool:
    return f"step {steps}/" in handle.status().progress or any(
        f"step {step}/" in handle.status().progress for step in range(steps, steps + 40)
    )


def test_job__left_by_its_client_found_again_killed_cancelled_and_resumed_equals_one_plain_process(
    head: RayHead, root: LocalStore, tmp_path: Path
) -> None:
    path = recipe_of(root, tmp_path, "walk", steps=60)
    follower = subprocess.Popen(
        [*command("submit", str(path), "--address", head.address, "--follow")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert follower.stdout is not None
    assert next(line for line in follower.stdout if "walk" in line or "worker" in line)
    end_session(follower.pid)  # the laptop is closed
    follower.wait()

    handle = find(root.url, "walk")
    wait_until(lambda: has_trained(handle, 4))
    assert handle.status().state is JobState.RUNNING
    (driver,) = (pid for pid, title in titled(("python -m heliostat_jobs.submission.entry",)))
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: handle.status().state is JobState.LOST)
    assert "resume" in handle.status().next_step

    told = heliostat("resume", "walk", "--root", root.url)
    assert (told["state"], told["submission_id"]) in (("pending", "walk-2"), ("running", "walk-2"))
    wait_until(lambda: handle.status().state is JobState.RUNNING and has_trained(handle, 8))
    handle.cancel()
    assert handle.wait(_PATIENCE_S).state is JobState.CANCELLED

    again = Client(head.address).submit(path)
    assert again.wait(_PATIENCE_S).state is JobState.FINISHED
    assert again.result()["steps"] == 60
    assert any("finished" in line for line in again.logs())
    assert [each.request.submission_id for each in records.read_submissions(again.job.store)] == [
        "walk-1",
        "walk-2",
        "walk-3",
    ]
    assert heliostat("submit", str(path), "--address", head.address)["state"] == "finished"
    assert_run_equals_plain_training(root, "walk")


def test_submit__of_clients_that_race_one_wins(head: RayHead, root: LocalStore, tmp_path: Path) -> None:
    path = broken_recipe(root, tmp_path, "raced")
    clients = [Client(head.address) for _ in range(4)]
    barrier = threading.Barrier(len(clients))

    def submit(client: Client) -> None:
        barrier.wait()
        client.submit(path)

    threads = [threading.Thread(target=submit, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle = find(root.url, "raced")
    status = handle.wait(_PATIENCE_S)
    assert (status.state, status.submission_id) == (JobState.FAILED, "raced-1")
    assert status.fact.startswith("HS-RUN-004: there is no run 'nothing'")
    assert len(records.read_submissions(handle.job.store)) == 1
    printed = RayJobs.at(head.address).log("raced-1")
    assert printed.count("Running entrypoint") == 1


def test_submit__a_changed_config_is_refused_with_a_diff_unless_forked(
    head: RayHead, root: LocalStore, tmp_path: Path
) -> None:
    client = Client(head.address)
    client.submit(broken_recipe(root, tmp_path, "changed", neighbours=3))
    path = broken_recipe(root, tmp_path, "changed", neighbours=4)
    with pytest.raises(ChangedConfigError, match=r"knn\.neighbours \[3\] -> \[4\]"):
        client.submit(path)
    forked = client.submit(path, fork=True)
    assert forked.job.name.startswith("changed-fork-")
    assert client.submit(path, fork=True).job.name == forked.job.name
    assert len(records.read_submissions(forked.job.store)) == 1


def test_status__failing_25_times_starts_nothing(head: RayHead, root: LocalStore, tmp_path: Path) -> None:
    with FaultProxy(head.address).running() as proxy:
        path = recipe_of(root, tmp_path, "healthy", steps=2000)
        handle = Client(proxy.endpoint).submit(path)
        wait_until(lambda: handle.status().state is JobState.RUNNING)
        proxy.plan(Rule("500", contains="/api/jobs/", times=None))
        for _ in range(25):
            assert handle.status().state is JobState.UNREACHABLE
        with pytest.raises(ClusterUnreachableError):
            RayJobs.at(proxy.endpoint).log("healthy-1")
        Client(proxy.endpoint).submit(path)
        proxy.plan()
        assert handle.status().state is JobState.RUNNING
        assert len(records.read_submissions(handle.job.store)) == 1
        handle.cancel()
        assert handle.wait(_PATIENCE_S).state is JobState.CANCELLED


def test_client__wrong_token_no_token_and_dead_head_are_told_apart(
    root: LocalStore, tmp_path: Path, head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken_recipe(root, tmp_path, "refused")
    told = heliostat("submit", str(path), "--address", "http://127.0.0.1:1", expect=3)
    assert told["error"]["code"] == "HS-RUN-008"
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("0" * 64)
    for variables in ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"HOME": str(tmp_path)}):
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        told = heliostat("submit", str(path), "--address", head.address, expect=3)
        assert told["error"]["code"] == ClusterDeniedError.code
    assert not (tmp_path / "refused").exists()
    assert records.newest(Job(root, "evaluate", "refused").store) is None


def test_secrets__planted_in_the_environment_and_behind_a_reference_appear_nowhere(
    head: RayHead, root: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(CANARY)
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARY)
    path = recipe_of(root, tmp_path, "secretive", steps=3)
    secret = f"WANDB_API_KEY=file:{tmp_path / 'key'}"
    handle = Client(head.address).submit(path, secrets=[secret])
    assert handle.wait(_PATIENCE_S).state is JobState.FINISHED, list(handle.logs())[-5:]
    jobs = RayJobs.at(head.address)
    assert CANARY not in str(jobs._client.list_jobs())
    assert CANARY not in jobs.log("secretive-1")
    everywhere = [path for folder in (Path(root.url), head.folder) for path in folder.rglob("*") if path.is_file()]
    assert any("secretive" in str(path) for path in everywhere)
    assert [path for path in everywhere if CANARY.encode() in path.read_bytes()] == []


def test_pipeline__whose_controller_dies_starts_each_stage_once_and_hands_on_what_was_made(
    head: RayHead, root: LocalStore, tmp_path: Path
) -> None:
    recipe_of(root, tmp_path, "train", steps=3)
    of_what = {"run": "x", "bank": "tiny", "queries": "tiny", "knn": {"neighbours": [3]}}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"kind": "evaluate", "name": "x", **of_what}))
    stages = [
        {"name": "train", "recipe": "train.yaml"},
        {"name": "judge", "recipe": "judge.yaml", "from": "train.last"},
    ]
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump({"kind": "pipeline", "name": "whole", "root": root.url, "stages": stages}))
    client = Client(head.address)
    handle = client.submit(path)
    wait_until(lambda: any(stage.took_s is not None for stage in handle.stages()))
    controllers = [
        pid for pid, title in titled(("python -m heliostat_jobs.submission.entry",)) if "--kind pipeline" in title
    ]
    (controller,) = (pid for pid in controllers if descends_from(pid, os.getpid()))
    os.kill(controller, signal.SIGKILL)
    wait_until(lambda: handle.status().state is JobState.LOST)
    wait_until(lambda: find(root.url, "whole-train").status().state is JobState.FINISHED)
    told = client.resume(handle).wait(_PATIENCE_S)
    assert told.state is JobState.FINISHED, list(handle.logs())[-5:]
    for name in ("whole-train", "whole-judge"):
        assert len(records.read_submissions(find(root.url, name).job.store)) == 1
    judged = records.newest(Job(root, "evaluate", "whole-judge").store)
    made = records.newest(Job(root, "pretrain", "whole-train").store)
    assert judged is not None and made is not None and made.end is not None and judged.end is not None
    assert judged.request.inputs["train.last"] == made.end.artifacts["last"]
    assert judged.end.result["step"] == 2 + 1
    shown = heliostat("status", "whole", "--root", root.url)
    assert [stage["phase"] for stage in shown["stages"]] == ["succeeded", "succeeded"]
