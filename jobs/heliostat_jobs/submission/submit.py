"""Handing a job to a cluster, once: whoever asks for the same again, at the same time or later, gets the same job.

Every step can be repeated by anybody. A request is created under a free number; a cluster runs a job of one id once. So
a client that dies between any two steps leaves nothing undone that the next one does not do, and two clients that race
end up with one job.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from heliostat.config import ResolvedRecipe, check_same_run, identity, lock
from heliostat.errors import RunError
from heliostat.storage import Store
from heliostat_jobs.kinds import Job
from heliostat_jobs.locks import locked_identity
from heliostat_jobs.submission import records
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.records import JobEnd, Request, Submission
from heliostat_jobs.submission.seen import JobPhase, JobSeen, ToDo, seen_by_itself, to_do

_TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run.

    Attributes:
        job: Where it lies.
        resolved: The recipe.
        wheel: The code.
        secrets: References by name.
        prefix: Of the submission ids, before the number; None is the job's name.
    """

    job: Job
    resolved: ResolvedRecipe
    wheel: Path
    secrets: dict[str, str] = field(default_factory=dict)
    prefix: str | None = None


def submit(order: Order, jobs: RayJobs) -> Submission | None:
    """Have a job run on a cluster, unless it does or is done; its newest submission, None if it is done without any.

    Raises:
        ChangedConfigError: there is a job of this name with another configuration.
        HeliostatError: what the cluster or the store have to say.
    """
    store = order.job.store
    while True:
        newest = records.newest(store)
        check_identity(order.job, order.resolved, newest)
        is_elsewhere = newest is not None and newest.request.address != jobs.address
        seen = see(store, newest, lambda address: jobs if address == jobs.address else connect(address))
        match to_do(newest, seen, is_finished=order.job.is_finished, is_elsewhere=is_elsewhere):
            case ToDo.CLAIM:
                number = 1 if newest is None else newest.request.number + 1
                records.write_request(store, _request(order, jobs, number))
            case ToDo.HAND_OVER if newest is not None:
                command = entrypoint(order.job, newest.request)
                if jobs.hand_over(newest.request, order.wheel, command, order.job.root.url):
                    return newest
                fact = f"{jobs.address} has another job of the id {newest.request.submission_id}"
                records.write_end(store, newest.request.number, _never_ran(fact))
            case _:
                return newest


def check_identity(job: Job, resolved: ResolvedRecipe, newest: Submission | None) -> None:
    """Refuse a job whose name is taken by one of another configuration.

    Raises:
        ChangedConfigError: the message lists every value, old -> new.
    """
    if newest is not None:
        check_same_run(newest.request.config["identity"], identity(resolved.recipe))
    if (locked := locked_identity(job.store)) is not None:
        check_same_run(locked, identity(resolved.recipe))


def see(store: Store, newest: Submission | None, reach: Callable[[str], RayJobs]) -> JobSeen:
    """What is known of a job's newest submission, from itself or from the cluster that it was handed to.

    Args:
        store: The job's.
        newest: Its newest submission.
        reach: Gives the jobs of the cluster at an address.
    """
    if newest is None:
        return JobSeen(JobPhase.ABSENT)
    if newest.end is not None:
        return seen_by_itself(newest.end)
    request = newest.request
    try:
        seen = reach(request.address).look(request.submission_id, request.nonce)
    except RunError as error:
        return JobSeen(JobPhase.UNKNOWN, fact=error.fact)
    # A driver says how it ended before it ends: whatever it had to say is there by now.
    end = records.read_end(store, request.number) if seen.phase is JobPhase.ENDED else None
    return seen if end is None else seen_by_itself(end)


def connect(address: str) -> RayJobs:
    """The jobs of a cluster to which a job was handed: whoever did that has decided that it may be talked to."""
    return RayJobs(address, is_insecure_wanted=True)


def entrypoint(job: Job, request: Request) -> str:
    """The command of the driver. What it needs to know lies in the store."""
    return (
        f"python -m heliostat_jobs.submission.entry --root {quote(job.root.url)} --kind {job.kind} --name {job.name} "
        f"--submission {request.number}"
    )


def _request(order: Order, jobs: RayJobs, number: int) -> Request:
    return Request(
        number=number,
        submission_id=f"{order.prefix or order.job.name}-{number}",
        address=jobs.address,
        package=order.wheel.name,
        secrets=order.secrets,
        config=lock(order.resolved),
        text=order.resolved.text,
    )


def _never_ran(fact: str) -> JobEnd:
    return JobEnd(outcome="failed", exit_code=1, code=_TAKEN, fact=fact)
