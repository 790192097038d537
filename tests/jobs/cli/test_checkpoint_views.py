import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import StateSlice, checkpoint_folder
from heliostat.checkpoint.log import CommitLog, EndEntry, Lease
from heliostat.checkpoint.requests import answer, asked
from heliostat.storage import Store, open_store
from heliostat.storage.layout import LOCK_KEY
from heliostat_jobs.cli import app

SHARD = f"{checkpoint_folder(20, 1)}/rank-00001.safetensors"


def heliostat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(["checkpoint", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def commit(store: Store, log: CommitLog, lease: Lease, step: int) -> None:
    """A checkpoint of two workers: two kinds of state."""
    draft = Draft(step, lease.attempt, 2, {"master|a": 100, "teacher|a": 100}, {"optimizer_steps": step}, "ab" * 32)
    for rank in (0, 1):
        part = [StateSlice(kind, "a", 50 * rank, torch.full((50,), float(step))) for kind in ("master", "teacher")]
        write_part(store, draft, rank, part)
    assemble(store, log, lease, draft, {"loss": 8.0 - step / 10})


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A run with checkpoints of steps 10 and 20."""
    folder = tmp_path / "root"
    store = open_store(str(folder / "runs" / "photos"))
    store.create(LOCK_KEY, b"{}")
    log = CommitLog(store)
    lease = log.acquire_lease("test")
    for step in (10, 20):
        commit(store, log, lease, step)
    return str(folder)


@pytest.fixture
def run(root: str) -> Store:
    return open_store(f"{root}/runs/photos")


def flip_last_byte(store: Store, key: str) -> None:
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


def test_list__one_row_per_checkpoint(root: str, run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("list", "photos", "--root", root) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "attempt", "committed", "(UTC)", "size", "workers", "loss"]
    assert [row.split()[0] for row in rows if row.strip()] == ["10", "20"]
    assert "7.0000" in rows[0]
    flip_last_byte(run, f"{checkpoint_folder(20, 1)}/manifest.json")
    assert heliostat("list", "photos", "--root", root, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(each["step"], each["workers"]) for each in answer["checkpoints"]] == [(10, 2), (20, None)]
    assert heliostat("list", "photos", "--root", root) == 0
    assert "manifest is broken" in capsys.readouterr().out


def test_list__of_a_run_without_checkpoints(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(f"{root}/runs/new").create(LOCK_KEY, b"{}")
    assert heliostat("list", "new", "--root", root) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    assert heliostat("show", "new", "--root", root) == 1
    assert "HS-CKPT-003" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["photo", "", "photos/checkpoints", ".."])
@pytest.mark.parametrize("verb", ["list", "show", "verify", "save"])
def test_every_verb__names_the_runs_there_are(
    root: str, verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heliostat(verb, name, "--root", root) == 2
    assert re.search(r"HS-RUN-004: there is no run .* Name one of: photos|HS-STOR-007", capsys.readouterr().err)


def test_show__what_is_in_it(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("show", "photos", "--root", root) == 0
    output = capsys.readouterr().out
    assert re.search(r"^step +20", output, re.MULTILINE)
    assert re.search(r"^optimizer steps +20", output, re.MULTILINE)
    assert re.search(r"^teacher +1 +100 ", output, re.MULTILINE)
    assert re.search(r"^loss +6", output, re.MULTILINE)
    assert heliostat("show", "photos", "--root", root, "--step", "10", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["step"], answer["workers"], answer["metrics"]) == (10, 2, {"loss": 7.0})
    assert answer["counters"] == {"optimizer_steps": 10}
    assert answer["digest_of_ids"] == "ab" * 32
    expected = {"tensors": 1, "elements": 100, "size_bytes": 400}
    assert answer["kinds"] == [{"kind": kind, **expected} for kind in ("master", "teacher")]


def test_show__of_a_step_that_is_not_there(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("show", "photos", "--root", root, "--step", "15") == 1
    assert "no checkpoint of step 15. There are checkpoints of 10, 20" in capsys.readouterr().err


def test_verify__names_the_first_fault_and_ends_with_one(
    root: str, run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heliostat("verify", "photos", "--root", root, "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("every byte is as it was committed" in line for line in lines)
    flip_last_byte(run, SHARD)
    assert heliostat("verify", "photos", "--root", root) == 1
    assert re.search(r"step 20, .*broken: .*rank-00001.safetensors are not those", capsys.readouterr().out)
    assert heliostat("verify", "photos", "--root", root, "--step", "10") == 0
    capsys.readouterr()
    assert heliostat("verify", "photos", "--root", root, "--all", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    assert [each["fault"] is None for each in answer["checkpoints"]] == [True, False]
    assert heliostat("verify", "photos", "--root", root, "--all", "--step", "10") == 2


def test_save__asks_and_waits_for_the_commit(root: str, run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("save", "photos", "--root", root) == 0
    assert "asked" in capsys.readouterr().out
    (first,) = asked(run)

    def train() -> None:
        while len(requests := asked(run)) < 2:
            time.sleep(0.02)
        log = CommitLog(run)
        commit(run, log, log.acquire_lease("test"), 23)
        answer(run, requests)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        assert heliostat("save", "photos", "--root", root, "--wait", "--json") == 0
    finally:
        trainer.join()
    answered = json.loads(capsys.readouterr().out)
    assert answered["step"] == 23
    assert answered["request"] != first


def test_save__says_that_nobody_trains(root: str, run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("save", "photos", "--root", root, "--wait", "--timeout-s", "0.1") == 1
    assert "HS-RUN-007: no worker of the run" in capsys.readouterr().err
    assert not asked(run)
    log = CommitLog(run)
    lease = log.acquire_lease("test")
    log.append(lease, EndEntry(attempt=lease.attempt, step=20, outcome="completed"))
    assert heliostat("save", "photos", "--root", root, "--wait") == 1
    assert "is finished" in capsys.readouterr().err


def test_checkpoints__can_be_looked_at_without_torch() -> None:
    code = "import sys, heliostat_jobs.checkpoints; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
