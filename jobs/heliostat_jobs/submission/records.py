"""What the store knows of a job's submissions: ``submissions/0001/`` below the job's own folder, the newest counts.

``request.json`` is created by the client, only if its number is free: of two clients that race one wins, the other one
finds the winner's. ``began.json`` is created by the driver that takes it on, and ``end.json`` when it ends;
``cancelled.json`` by whoever asks for the end. Each is written once. Whatever a cluster forgets when its head is
started again is still here.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from heliostat.errors import CorruptLockError, ObjectExistsError, ObjectNotFoundError
from heliostat.storage import Store
from heliostat.storage.fenced_log import Record
from heliostat_jobs.artifacts import Artifacts

FOLDER = "submissions/"
LOG = "log"
_REQUEST, _BEGAN, _END, _CANCELLED = "request.json", "began.json", "end.json", "cancelled.json"
_NUMBER = re.compile(r"\d{4}")

Outcome = Literal["succeeded", "failed", "cancelled"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Request(Record):
    """That a job is to run on a cluster, and everything that it needs to know. No secret is part of it."""

    schema_version: Literal[1] = 1
    number: Annotated[int, Field(ge=1, le=9999)]
    submission_id: str
    """Of the Ray job. A cluster runs a job of one id once, however often it is submitted."""
    nonce: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Tells this request from any other of the same submission id, of another root or of one that was removed."""
    address: str
    """Of the cluster that it was handed to."""
    package: str
    """Name of the wheel whose code runs."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """References by the name of the environment variable that they fill on every node."""
    inputs: Artifacts = Field(default_factory=dict)
    """What it starts from, as it was when it was asked for: the job goes on with nothing else."""
    config: dict[str, Any]
    """The recipe, as ``heliostat.config.lock`` writes it."""
    text: str
    """The recipe as it was written."""
    written_at: str = Field(default_factory=_now)


class JobEnd(Record):
    """How a submission came to its end, as the job itself says."""

    schema_version: Literal[1] = 1
    outcome: Outcome
    exit_code: int
    code: str = ""
    """Of the error."""
    fact: str = ""
    next_step: str = ""
    result: dict[str, Any] = Field(default_factory=dict)
    """What ``--json`` prints of the same job."""
    artifacts: Artifacts = Field(default_factory=dict)
    written_at: str = Field(default_factory=_now)


class Began(Record):
    """That a driver has taken a submission on: the only one that ever will."""

    by: str
    """Host and process."""
    version: str
    """Of the code that it runs."""
    nonce: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Tells drivers apart, on which ``Store.create`` relies."""
    written_at: str = Field(default_factory=_now)


class Cancelled(Record):
    """That somebody wants a submission to end."""

    by: str
    """Host and user."""
    written_at: str = Field(default_factory=_now)


@dataclass(frozen=True, slots=True)
class Submission:
    """All that is known of one."""

    request: Request
    end: JobEnd | None = None
    cancelled: Cancelled | None = None


def read_submissions(job: Store) -> list[Submission]:
    """All submissions of a job, oldest first.

    Raises:
        CorruptLockError: something is not what this version wrote.
    """
    found = (read_submission(job, number) for number in _numbers(job))
    return [submission for submission in found if submission is not None]


def newest(job: Store) -> Submission | None:
    """The submission that counts; none if there is none. Older ones are not read."""
    found = (read_submission(job, number) for number in reversed(_numbers(job)))
    return next((submission for submission in found if submission is not None), None)


def read_submission(job: Store, number: int) -> Submission | None:
    """One submission; none if nobody has claimed its number.

    Raises:
        CorruptLockError: something is not what this version wrote.
    """
    request: Request | None = _parsed(job, _key(number, _REQUEST), Request)
    if request is None:
        return None
    return Submission(request, read_end(job, number), _parsed(job, _key(number, _CANCELLED), Cancelled))


def _numbers(job: Store) -> list[int]:
    return sorted(int(name) for name in job.folders(FOLDER) if _NUMBER.fullmatch(name))


def write_request(job: Store, request: Request) -> bool:
    """Claim its number; False if somebody else has it."""
    return _create(job, _key(request.number, _REQUEST), request)


def write_began(job: Store, number: int, began: Began) -> bool:
    """Take a submission on; False if another driver has."""
    return _create(job, _key(number, _BEGAN), began)


def has_begun(job: Store, number: int) -> bool:
    """Whether a driver has taken a submission on."""
    return job.exists(_key(number, _BEGAN))


def write_end(job: Store, number: int, end: JobEnd) -> bool:
    """Say how a submission ended; False if that was said before."""
    return _create(job, _key(number, _END), end)


def write_cancelled(job: Store, number: int, cancelled: Cancelled) -> bool:
    """Ask for the end of a submission; False if that was asked before."""
    return _create(job, _key(number, _CANCELLED), cancelled)


def read_request(job: Store, number: int) -> Request:
    """What a submission is to do.

    Raises:
        CorruptLockError: it is not there, or not what this version wrote.
    """
    request: Request | None = _parsed(job, _key(number, _REQUEST), Request)
    if request is None:
        raise CorruptLockError(f"{job.url}/{_key(number, _REQUEST)} is not there", "Submit the job again")
    return request


def read_end(job: Store, number: int) -> JobEnd | None:
    """How a submission ended, if it has said so.

    Raises:
        CorruptLockError: what is there is not what this version wrote.
    """
    end: JobEnd | None = _parsed(job, _key(number, _END), JobEnd)
    return end


def is_cancelled(job: Store, number: int) -> bool:
    """Whether somebody asked for the end of a submission."""
    return job.exists(_key(number, _CANCELLED))


def log_prefix(number: int) -> str:
    """Of the segments of what a submission's driver prints."""
    return f"{FOLDER}{number:04d}/{LOG}"


def _key(number: int, name: str) -> str:
    return f"{FOLDER}{number:04d}/{name}"


def _create(job: Store, key: str, record: Record) -> bool:
    try:
        job.create(key, record.model_dump_json(indent=1).encode())
    except ObjectExistsError:
        return False
    return True


def _parsed(job: Store, key: str, kind: type[Any]) -> Any:
    try:
        return kind.model_validate_json(job.get(key))
    except ObjectNotFoundError:
        return None
    except ValidationError as error:
        raise CorruptLockError(
            f"{job.url}/{key} is not what this version wrote", "Put it back as it was, or use another name"
        ) from error
