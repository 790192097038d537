"""The Jobs API of one cluster: the only file that knows Ray's client for it."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stamina

from heliostat.config import secrets
from heliostat.errors import ClusterDeniedError, ClusterUnreachableError, SubmissionRefusedError
from heliostat.observe.redaction import redact
from heliostat_jobs.submission import access
from heliostat_jobs.submission.records import Request
from heliostat_jobs.submission.seen import JobPhase, JobSeen

_NONCE = "heliostat_nonce"
_STOP_WAIT_S = 60
"""Between the wish that a driver ends and its end by force: time for a last checkpoint."""
_LOST_CHARS = 400
_CONNECT_S, _ANSWER_S, _UPLOAD_S = 5.0, 30.0, 300.0
_NO_AGENT = "No available agent"
"""What Ray says for some seconds after its head has started."""
_STARTING_S, _STARTING_WAIT_S = 60.0, 2.0
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that set their own level when they are imported."""
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class _StartingError(ClusterUnreachableError):
    """A cluster that is about to be ready."""


class RayJobs:
    """Jobs on one cluster.

    Args:
        client: Ray's.
        address: Of the cluster, as those who submit to it say it.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self.address = address

    @classmethod
    def at(cls, address: str, *, is_insecure_wanted: bool = False) -> "RayJobs":
        """Of the cluster whose dashboard is at an address, as ``access.cluster_url`` takes it.

        Raises:
            InsecureClusterError: the cluster must not be talked to like this; see ``access.check_access``.
            ClusterUnreachableError: it does not answer.
            ClusterDeniedError: it does not accept the token.
        """
        url = access.cluster_url(address)
        token = access.token_file(os.environ, Path.home())
        access.check_access(url, token, is_insecure_wanted=is_insecure_wanted)
        # Ray itself would decide once per process whether it sends a token, by the environment of then.
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token else None
        return cls(_client(url, headers), url)

    @classmethod
    def here(cls, address: str) -> "RayJobs":
        """Of the cluster on which this process is a job; others know it by the address."""
        return cls(_client(None), address)

    def look(self, submission_id: str, nonce: str) -> JobSeen:
        """What the cluster says of a job; that it does not answer is an answer too."""
        try:
            with _translated(self.address):
                found = self._info(submission_id)
        except ClusterUnreachableError as error:
            return JobSeen(JobPhase.UNKNOWN, fact=error.fact)
        if found is None or (found.metadata or {}).get(_NONCE) != nonce:
            return JobSeen(JobPhase.ABSENT)
        if not found.status.is_terminal():
            return JobSeen(JobPhase.ALIVE, fact=str(found.status.value).lower())
        if found.status == "STOPPED":
            return JobSeen(JobPhase.ENDED, "cancelled")
        # A driver that came to its own end has told of it in the store, which is looked at first.
        return JobSeen(JobPhase.ENDED, fact=redact(" ".join((found.message or "").split()))[-_LOST_CHARS:])

    def hand_over(self, request: Request, package: str, entrypoint: str, root: str) -> bool:
        """Start a job; False if the cluster has one of this id that is another's.

        Doing it again does nothing: the cluster knows the job by its id.

        Args:
            request: What is to run.
            package: Path of the wheel, or its address on the cluster.
            entrypoint: Command of the driver.
            root: Where the job lies.

        Raises:
            SubmissionRefusedError: the cluster does not take it.
            ClusterUnreachableError, ClusterDeniedError: as above.
        """
        starting = stamina.retry_context(_StartingError, attempts=None, timeout=_STARTING_S, wait_max=_STARTING_WAIT_S)
        for attempt in starting:
            with attempt, _translated(self.address):
                return self._submitted(request, package, entrypoint, root)
        raise AssertionError("the last attempt returns or raises")

    def _submitted(self, request: Request, package: str, entrypoint: str, root: str) -> bool:
        try:
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=request.submission_id,
                runtime_env=_runtime_env(request.secrets, package),
                metadata={_NONCE: request.nonce, "heliostat_root": root},
            )
        except RuntimeError as error:
            if (found := self._info(request.submission_id)) is not None:
                return (found.metadata or {}).get(_NONCE) == request.nonce
            if _NO_AGENT in str(error):
                raise _StartingError(
                    f"{self.address} has no agent yet that starts jobs", "Wait until its head has started"
                ) from error
            raise SubmissionRefusedError(
                f"{self.address} refuses job {request.submission_id}: {redact(str(error))[-_LOST_CHARS:]}",
                "See the dashboard's log on the cluster's head",
            ) from error
        return True

    def stop(self, submission_id: str) -> None:
        """Ask a job to end. One that does not exist, or has ended, is fine."""
        with _translated(self.address):
            try:
                self._client.stop_job(submission_id)
            except RuntimeError as error:
                if not _is_missing(error):
                    raise

    def log(self, submission_id: str) -> str:
        """What a job's driver has printed, and what Ray itself said before it began."""
        with _translated(self.address):
            try:
                return str(self._client.get_job_logs(submission_id))
            except RuntimeError as error:
                if _is_missing(error):
                    return ""
                raise

    def _info(self, submission_id: str) -> Any:
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if _is_missing(error):
                return None
            raise


def package_on_cluster(name: str) -> str:
    """The address of a wheel that was uploaded before: Ray names it by its file."""
    return f"gcs://{name}"


def _client(url: str | None, headers: dict[str, str] | None = None) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Waits for an answer for a while only, where Ray's own would for ever."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", (_CONNECT_S, _UPLOAD_S if method == "PUT" else _ANSWER_S))
            return super()._do_request(method, endpoint, **options)

    # Ray lets these variables override the address that it is given.
    overriding = {} if url is None else {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        with _translated(url or "this cluster"):
            return Client(url, headers=headers)
    finally:
        os.environ.update(overriding)


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Errors of Ray's client as ours."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        raise ClusterDeniedError(
            f"{address} does not accept the token, or wants one and got none",
            f"Put the path of the cluster's token into {access.TOKEN_PATH_VARIABLE}",
        ) from error
    except (RequestException, ConnectionError, RuntimeError) as error:
        raise ClusterUnreachableError(
            f"the Ray dashboard at {address} does not answer as it should ({type(error).__name__}: "
            f"{redact(str(error))[:_LOST_CHARS]})",
            "Check the address, and that the head of the cluster runs",
        ) from error


def _is_missing(error: RuntimeError) -> bool:
    return "status code 404" in str(error)


def _runtime_env(references: Mapping[str, str], package: str) -> dict[str, Any]:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    found: dict[str, Any] = {"py_modules": [package], "env_vars": variables}
    if references:
        variables[secrets.VARIABLE] = json.dumps(references)
        found["worker_process_setup_hook"] = secrets.SETUP_HOOK
    return found
