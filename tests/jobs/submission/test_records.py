"""What the store knows of submissions: numbers are claimed once, whatever is written once stays."""

import threading
from pathlib import Path

import pytest

from heliostat.errors import CorruptLockError
from heliostat.storage.local import LocalStore
from heliostat_jobs.submission import records
from heliostat_jobs.submission.records import Cancelled, JobEnd, Request


def request(number: int = 1, address: str = "http://head:8265") -> Request:
    return Request(number=number, submission_id=f"a-{number}", address=address, package="x.whl", config={}, text="")


def test_write_request__of_many_one_wins_and_all_find_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    barrier = threading.Barrier(8)
    won: list[str] = []

    def claim(number: int) -> None:
        mine = request(address=f"http://head-{number}:8265")
        barrier.wait()
        if records.write_request(store, mine):
            won.append(mine.address)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = records.newest(store)
    assert newest is not None
    assert [newest.request.address] == won


def test_submissions__the_newest_counts_with_its_end_and_its_cancellation(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert records.newest(store) is None
    for number in (1, 2, 10):
        records.write_request(store, request(number))
    records.write_end(store, 1, JobEnd(outcome="failed", exit_code=1, code="HS-RUN-003"))
    records.write_cancelled(store, 10, Cancelled(by="me"))
    store.put("submissions/0010/log/00000000.jsonl", b"{}\n")
    found = records.read_submissions(store)
    assert [each.request.number for each in found] == [1, 2, 10]
    assert found[0].end is not None and found[0].end.code == "HS-RUN-003"
    assert found[2].cancelled is not None
    assert records.is_cancelled(store, 10)
    assert not records.is_cancelled(store, 2)
    assert not records.write_end(store, 1, JobEnd(outcome="succeeded", exit_code=0))
    assert records.read_end(store, 1) == found[0].end


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 2}', "\x00"])
def test_submissions__what_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    store = LocalStore(tmp_path)
    store.put("submissions/0001/request.json", text.encode())
    with pytest.raises(CorruptLockError, match=r"submissions/0001/request\.json"):
        records.newest(store)


def test_submissions__a_gap_or_an_end_without_a_request_is_no_submission(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    records.write_end(store, 3, JobEnd(outcome="failed", exit_code=1))
    assert records.newest(store) is None
    assert records.read_submission(store, 3) is None
