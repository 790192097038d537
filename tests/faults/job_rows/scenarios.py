"""What is done to jobs, and what has to hold afterwards; each raises AssertionError where it does not.

Numbers are those of the fault matrix. A scenario gives the seconds that the platform needed to recover, if there is
something to recover.
"""

import os
import signal
import subprocess
import threading
import time

import pytest
from faults.job_rig import PATIENCE_S, JobRig, has_done, is_running, wait_until
from support.fault_proxy import FaultProxy, Rule
from support.processes import end_session
from support.projects import command

from heliostat.errors import ChangedConfigError
from heliostat_jobs import Client
from heliostat_jobs.kinds import Job
from heliostat_jobs.pipelines.log import PipelineLog, StageStarted
from heliostat_jobs.submission import records
from heliostat_jobs.submission.client import JobState
from heliostat_jobs.submission.ray_jobs import RayJobs

STEPS = 80
"""So many that a run does not end while it is asked to."""


def driver_killed(rig: JobRig) -> float:
    """F12: the client goes, then the driver; whoever asks for the job by its name has it go on, exactly."""
    path = rig.pretraining("walk", STEPS)
    follower = subprocess.Popen(
        command("submit", str(path), "--address", rig.head.address, "--follow"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert follower.stdout is not None
    printed = next((line for line in follower.stdout if "begins" in line), None)
    end_session(follower.pid)  # the laptop is closed
    follower.communicate()
    assert printed is not None, "nothing was followed"
    handle = rig.find("walk")
    wait_until(lambda: has_done(handle, 4), "the first steps")
    assert is_running(handle)
    os.kill(rig.driver("walk"), signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: handle.status().state is JobState.LOST, "the loss of the driver")
    rig.client().resume(handle)
    done = _steps(rig, "walk")
    wait_until(lambda: _steps(rig, "walk") > done, "a step after the loss")
    recovered_s = time.monotonic() - killed
    handle.cancel()
    ended = handle.wait(PATIENCE_S)
    assert ended.state is JobState.CANCELLED, ended
    again = rig.client().submit(path)
    assert again.wait(PATIENCE_S).state is JobState.FINISHED, list(again.logs())[-5:]
    assert again.result()["steps"] == STEPS
    assert any("finished" in line for line in again.logs())
    assert rig.submissions("walk") == ["walk-1", "walk-2", "walk-3"]
    assert rig.client().submit(path).status().state is JobState.FINISHED
    rig.assert_exact("walk")
    return recovered_s


def head_killed(rig: JobRig) -> float:
    """F13: the head with all that it knew goes; a new one is given the job again, which resumes from storage."""
    path = rig.pretraining("homeless", STEPS)
    handle = rig.client().submit(path)
    wait_until(lambda: has_done(handle, 4), "the first steps")
    rig.head.kill()
    assert handle.status().state is JobState.UNREACHABLE
    assert list(handle.logs()), "what was printed went with the head"
    killed = time.monotonic()
    rig.head.start()
    wait_until(lambda: handle.status().state is JobState.LOST, "the new head")
    done = _steps(rig, "homeless")
    rig.client().submit(path)
    wait_until(lambda: _steps(rig, "homeless") > done, "a step on the new head")
    recovered_s = time.monotonic() - killed
    assert handle.wait(PATIENCE_S).state is JobState.FINISHED
    assert rig.submissions("homeless") == ["homeless-1", "homeless-2"]
    rig.assert_exact("homeless")
    return recovered_s


def _steps(rig: JobRig, name: str) -> int:
    """Highest step of which there are metrics."""
    from heliostat.observe.metrics import read_metrics
    from heliostat.storage.layout import run_store

    return max((line.step for line in read_metrics(run_store(rig.root, name))), default=-1)


def controller_killed(rig: JobRig) -> float:
    """F25: a pipeline's controller dies between the end of a stage and the start of the next one."""
    client = rig.client()
    handle = client.submit(rig.pipeline("whole"))
    train = Job(rig.root, "pretrain", "whole-train").store
    wait_until(lambda: records.has_begun(train, 1), "the first stage")
    os.kill(rig.driver("whole"), signal.SIGKILL)
    wait_until(lambda: handle.status().state is JobState.LOST, "the loss of the controller")
    wait_until(lambda: rig.find("whole-train").status().state is JobState.FINISHED, "the end of the first stage")
    resumed = time.monotonic()
    client.resume(handle)
    wait_until(lambda: all(stage.took_s is not None for stage in handle.stages()), "the other stages")
    recovered_s = time.monotonic() - resumed
    assert handle.wait(PATIENCE_S).state is JobState.FINISHED, list(handle.logs())[-5:]
    for name in ("whole-train", "whole-judge", "whole-export"):
        assert rig.submissions(name) == [f"{name}-1"]
    made, judged = (records.newest(rig.find(name).job.store) for name in ("whole-train", "whole-judge"))
    assert made is not None
    assert made.end is not None
    assert judged is not None
    assert judged.end is not None
    assert judged.request.inputs["train.last"] == made.end.artifacts["last"]
    assert judged.end.result["step"] == made.end.artifacts["last"]["step"]
    return recovered_s


def controller_killed_everywhere(rig: JobRig) -> None:
    """F25: each controller of a pipeline lives for one write of its own, and the next one goes on from there."""
    client = rig.client()
    own_writes = ("/pipelines/mortal/log/", "/submissions/0001/request.json")
    handle = client.submit(rig.pipeline("mortal"))
    lives = 0
    while handle.status().state is not JobState.FINISHED:
        lives += 1
        before = rig.wire.faults["503"]
        rig.wire.plan(Rule("503", "PUT", own_writes, skip=2, times=None))  # its lease and one more pass

        def is_over(before: int = before) -> bool:
            return rig.wire.faults["503"] > before or handle.status().state is JobState.FINISHED

        wait_until(is_over, f"a second write of controller {lives}")
        if rig.wire.faults["503"] > before:
            os.kill(rig.driver("mortal"), signal.SIGKILL)
            wait_until(lambda: handle.status().state is JobState.LOST, "the loss of the controller")
            rig.wire.plan()
            client.resume(handle)
    rig.wire.plan()
    stages = [f"mortal-{stage}" for stage in ("train", "judge", "export")]
    # Of each stage its start, its request and its end, and the end of all.
    assert lives >= 3 * len(stages) + 1, lives
    for name in stages:
        assert rig.submissions(name) == [f"{name}-1"]
        assert rig.find(name).status().state is JobState.FINISHED
        assert RayJobs.at(rig.head.address).log(f"{name}-1").count("Running entrypoint") == 1
    started = [entry.stage for entry in PipelineLog(handle.job.store).read() if isinstance(entry, StageStarted)]
    assert sorted(started) == ["export", "judge", "train"]


def two_clients(rig: JobRig) -> None:
    """F26: of clients that submit one name at once, one wins, and the others get its job."""
    path = rig.broken("raced")
    clients = [rig.client() for _ in range(4)]
    barrier = threading.Barrier(len(clients))
    ids = []

    def submit(client: Client) -> None:
        barrier.wait()
        ids.append(client.submit(path).status().submission_id)

    threads = [threading.Thread(target=submit, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = rig.find("raced").wait(PATIENCE_S)
    assert ids == ["raced-1"] * len(clients)
    assert (status.state, status.submission_id) == (JobState.FAILED, "raced-1")
    assert status.fact.startswith("HS-CKPT-003: run 'empty' has committed no checkpoint yet"), status
    assert rig.submissions("raced") == ["raced-1"]
    assert RayJobs.at(rig.head.address).log("raced-1").count("Running entrypoint") == 1


def failing_status(rig: JobRig) -> None:
    """F29: 25 looks at a healthy job that fail start nothing."""
    with FaultProxy(rig.head.address).running() as proxy:
        path = rig.pretraining("healthy", 5000)
        handle = Client(proxy.endpoint).submit(path)
        wait_until(lambda: is_running(handle), "the job")
        proxy.plan(Rule("500", contains="/api/jobs/", times=None))
        for _ in range(25):
            assert handle.status().state is JobState.UNREACHABLE
            Client(proxy.endpoint).submit(path)
        proxy.plan()
        assert is_running(handle)
        assert rig.submissions("healthy") == ["healthy-1"]
        handle.cancel()
        assert handle.wait(PATIENCE_S).state is JobState.CANCELLED


def changed_config(rig: JobRig) -> None:
    """F30: a changed configuration is refused with a diff, but for what may change; a fork has a name of its own."""
    client = rig.client()
    client.submit(rig.broken("changed", knn={"neighbours": [3]}))
    path = rig.broken("changed", knn={"neighbours": [4]})
    with pytest.raises(ChangedConfigError, match=r"knn\.neighbours \[3\] -> \[4\]"):
        client.submit(path)
    forked = client.submit(path, fork=True)
    assert forked.job.name.startswith("changed-fork-")
    assert client.submit(path, fork=True).job.name == forked.job.name
    assert forked.wait(PATIENCE_S).state is JobState.FAILED
