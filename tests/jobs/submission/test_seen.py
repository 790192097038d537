"""What a client does about a job, for everything that it may see of it."""

import pytest

from heliostat_jobs.submission.records import Cancelled, JobEnd, Request, Submission
from heliostat_jobs.submission.seen import JobPhase, JobSeen, ToDo, seen_by_itself, to_do

REQUEST = Request(number=1, submission_id="a-1", address="http://head:8265", package="x.whl", config={}, text="")
ASKED = Submission(REQUEST)
CANCELLED = Submission(REQUEST, cancelled=Cancelled(by="me"))
DONE = Submission(REQUEST, JobEnd(outcome="succeeded", exit_code=0))
FAILED = Submission(REQUEST, JobEnd(outcome="failed", exit_code=1, code="HS-RUN-003"))
ABSENT, ALIVE, ENDED, UNKNOWN = (JobSeen(phase) for phase in JobPhase)


@pytest.mark.parametrize(
    ("newest", "seen", "what"),
    [
        (None, ABSENT, ToDo.CLAIM),
        (ASKED, ABSENT, ToDo.HAND_OVER),
        (ASKED, ALIVE, ToDo.ATTACH),
        (ASKED, UNKNOWN, ToDo.ATTACH),
        (ASKED, ENDED, ToDo.CLAIM),
        (CANCELLED, ABSENT, ToDo.CLAIM),
        (CANCELLED, ALIVE, ToDo.ATTACH),
        (CANCELLED, UNKNOWN, ToDo.ATTACH),
        (DONE, ENDED, ToDo.CLAIM),
        (FAILED, ENDED, ToDo.CLAIM),
    ],
)
def test_to_do__on_the_cluster_that_has_it(newest: Submission | None, seen: JobSeen, what: ToDo) -> None:
    assert to_do(newest, seen) is what
    assert to_do(newest, seen, is_finished=True) is ToDo.NOTHING


@pytest.mark.parametrize(
    ("seen", "what"),
    [(ALIVE, ToDo.ATTACH), (UNKNOWN, ToDo.ATTACH), (ABSENT, ToDo.CLAIM), (ENDED, ToDo.CLAIM)],
)
def test_to_do__wanted_on_another_cluster(seen: JobSeen, what: ToDo) -> None:
    assert to_do(ASKED, seen, is_elsewhere=True) is what


def test_to_do__whoever_insists_has_it_go_on_here() -> None:
    assert to_do(ASKED, UNKNOWN, is_elsewhere=True, is_insisted=True) is ToDo.CLAIM
    assert to_do(ASKED, ALIVE, is_elsewhere=True, is_insisted=True) is ToDo.ATTACH
    assert to_do(ASKED, UNKNOWN, is_insisted=True) is ToDo.ATTACH


def test_seen__the_cause_is_what_the_job_says_or_that_it_said_nothing() -> None:
    assert FAILED.end is not None
    assert seen_by_itself(FAILED.end).cause == "HS-RUN-003"
    assert ENDED.cause == "lost"
