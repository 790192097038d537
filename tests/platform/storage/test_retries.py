import logging
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from heliostat.storage.retries import count_retry, retry_counts, stall_begins, stall_ends


def test_retry_counts__lose_nothing_between_threads() -> None:
    before = retry_counts().get("Test", 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count_retry, ["Test"] * 4000))
    assert retry_counts()["Test"] == before + 4000


def test_retry_counts__are_a_copy() -> None:
    retry_counts()["Mine"] = 1
    assert "Mine" not in retry_counts()


def exit_with_the_number_of_counts() -> None:
    sys.exit(len(retry_counts()))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it has threads, as processes that fork here do
def test_retry_counts__of_a_forked_child_are_its_own() -> None:
    count_retry("Parent")
    child = multiprocessing.get_context("fork").Process(target=exit_with_the_number_of_counts)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_stalls__at_one_place_are_said_once_until_all_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    for place in ("s3://one", "s3://one", "s3://two"):
        stall_begins(place, f"{place}/key", "SlowDown", silent_s=10.4, left_s=90)
    stall_ends("s3://one", 20, answered=True)
    stall_ends("s3://two", 30, answered=False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    first, second = caplog.messages
    assert first.startswith("s3://one/key has not answered for 10 s (SlowDown); trying on until ")
    assert second.startswith("s3://two/key")
    until = time.strptime(first.split()[-2], "%H:%M:%S")
    left_s = (until.tm_hour * 3600 + until.tm_min * 60 + until.tm_sec - time.time()) % 86400
    assert 80 < left_s <= 90
    stall_ends("s3://one", 20.6, answered=True)
    assert caplog.messages[2:] == ["s3://one answers again after 21 s"]
