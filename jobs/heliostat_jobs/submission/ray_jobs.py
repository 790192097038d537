"""The Jobs API of one cluster: the only file that knows Ray's client for it."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heliostat.errors import ClusterDeniedError, ClusterUnreachableError, SubmissionRefusedError
from heliostat.observe.redaction import redact
from heliostat_jobs.submission import access, secrets
from heliostat_jobs.submission.records import Request
from heliostat_jobs.submission.seen import JobPhase, JobSeen

_NONCE = "heliostat_nonce"
_STOP_WAIT_S = 60
"""Between the wish that a driver ends and its end by force: time for a last checkpoint."""
_LOST_CHARS = 400


class RayJobs:
    """Jobs on the cluster whose dashboard is at an address.

    Args:
        address: As ``access.cluster_url`` takes it.
        is_insecure_wanted: See ``access.check_access``.

    Raises:
        InsecureClusterError: the cluster must not be talked to like this.
        ClusterUnreachableError: it does not answer.
        ClusterDeniedError: it does not accept the token.
    """

    def __init__(self, address: str, *, is_insecure_wanted: bool = False) -> None:
        self.address = access.cluster_url(address)
        token = access.token_file(os.environ, Path.home())
        access.check_access(self.address, token, is_insecure_wanted=is_insecure_wanted)
        # Unset, Ray chooses for itself, and not everywhere alike.
        os.environ[access.MODE_VARIABLE] = "token" if token else "disabled"
        if token:
            os.environ[access.TOKEN_PATH_VARIABLE] = str(token)
        logging.getLogger("ray.dashboard.modules").setLevel(logging.ERROR)
        from ray.job_submission import JobSubmissionClient

        with _translated(self.address):
            self._client = JobSubmissionClient(self.address)

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

    def hand_over(self, request: Request, wheel: Path, entrypoint: str, root: str) -> bool:
        """Start a job; False if the cluster has one of this id that is another's.

        Doing it again does nothing: the cluster knows the job by its id.
        """
        with _translated(self.address):
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=request.submission_id,
                    runtime_env=_runtime_env(request.secrets, wheel),
                    metadata={_NONCE: request.nonce, "heliostat_root": root},
                )
            except RuntimeError as error:
                if (found := self._info(request.submission_id)) is None:
                    raise SubmissionRefusedError(
                        f"{self.address} refuses job {request.submission_id}: {redact(str(error))[-_LOST_CHARS:]}",
                        "See the dashboard's log on the cluster's head",
                    ) from error
                return (found.metadata or {}).get(_NONCE) == request.nonce
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


def _runtime_env(references: Mapping[str, str], wheel: Path) -> dict[str, Any]:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    found: dict[str, Any] = {"py_modules": [str(wheel)], "env_vars": variables}
    if references:
        variables[secrets.VARIABLE] = json.dumps(references)
        found["worker_process_setup_hook"] = secrets.SETUP_HOOK
    return found
