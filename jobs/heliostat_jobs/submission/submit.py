"""Handing a job to a cluster, once: whoever asks for the same again, at the same time or later, gets the same job.

Every step can be repeated by anybody. A request is created under a free number; a cluster runs a job of one id once. So
a client that dies between any two steps leaves nothing undone that the next one does not do, and two clients that race
end up with one job.
"""

from dataclasses import dataclass, field
from shlex import quote

from heliostat.config import ResolvedRecipe, check_same_run, identity, lock
from heliostat.errors import RunError
from heliostat.storage import Store
from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.kinds import Job
from heliostat_jobs.locks import locked_identity
from heliostat_jobs.submission import records
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.records import JobEnd, Request, Submission
from heliostat_jobs.submission.seen import JobPhase, JobSeen, ToDo, seen_by_itself, to_do

TAKEN = "taken"
"""The cause of the end of a submission whose id another one had."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run.

    Attributes:
        job: Where it lies.
        resolved: The recipe.
        package: Path of the wheel of the code, or its address on the cluster.
        secrets: References by name.
        inputs: What it starts from.
    """

    job: Job
    resolved: ResolvedRecipe
    package: str
    secrets: dict[str, str] = field(default_factory=dict)
    inputs: Artifacts = field(default_factory=dict)


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
        match to_do(newest, see(store, newest, jobs), is_finished=order.job.is_finished, is_elsewhere=is_elsewhere):
            case ToDo.CLAIM:
                numbered_request(order, jobs.address, 1 if newest is None else newest.request.number + 1)
            case ToDo.HAND_OVER if newest is not None:
                if hand_over(order.job, newest.request, order.package, jobs):
                    return newest
            case _:
                return newest


def numbered_request(order: Order, address: str, number: int) -> Request:
    """The request of a number: made now, or by whoever was first.

    Args:
        order: What is to run.
        address: Of the cluster.
        number: Of the submission.
    """
    request = Request(
        number=number,
        submission_id=submission_id(order.job.name, number),
        address=address,
        package=order.package.rpartition("/")[2],
        secrets=order.secrets,
        inputs=order.inputs,
        config=lock(order.resolved),
        text=order.resolved.text,
    )
    return request if records.write_request(order.job.store, request) else records.read_request(order.job.store, number)


def submission_id(name: str, number: int) -> str:
    """Of the Ray job of a job's submission; of a stage it is ``<pipeline>-<stage>-<attempt>``."""
    return f"{name}-{number}"


def hand_over(job: Job, request: Request, package: str, jobs: RayJobs) -> bool:
    """Give a request to the cluster; False if that has another job of its id, of another root perhaps."""
    if jobs.hand_over(request, package, entrypoint(job, request), job.root.url):
        return True
    fact = f"{jobs.address} has another job of the id {request.submission_id}"
    records.write_end(job.store, request.number, JobEnd(outcome="failed", exit_code=1, code=TAKEN, fact=fact))
    return False


def check_identity(job: Job, resolved: ResolvedRecipe, newest: Submission | None) -> None:
    """Refuse a job whose name is taken by one of another configuration.

    Raises:
        ChangedConfigError: the message lists every value, old -> new.
    """
    if newest is not None:
        check_same_run(newest.request.config["identity"], identity(resolved.recipe))
    if (locked := locked_identity(job.store)) is not None:
        check_same_run(locked, identity(resolved.recipe))


def see(store: Store, submission: Submission | None, jobs: RayJobs | None = None) -> JobSeen:
    """What is known of a submission, from itself or from the cluster that it was handed to.

    Args:
        store: The job's.
        submission: The one to look for.
        jobs: Of the cluster at hand, which may be that one.
    """
    if submission is None:
        return JobSeen(JobPhase.ABSENT)
    if submission.end is not None:
        return seen_by_itself(submission.end)
    request = submission.request
    try:
        at = jobs if jobs is not None and jobs.address == request.address else connect(request.address)
        seen = at.look(request.submission_id, request.nonce)
    except RunError as error:
        return JobSeen(JobPhase.UNKNOWN, fact=error.fact)
    # A driver says how it ended before it ends: whatever it had to say is there by now.
    end = records.read_end(store, request.number) if seen.phase is JobPhase.ENDED else None
    return seen if end is None else seen_by_itself(end)


def connect(address: str) -> RayJobs:
    """The jobs of a cluster to which a job was handed: whoever did that has decided that it may be talked to."""
    return RayJobs.at(address, is_insecure_wanted=True)


def entrypoint(job: Job, request: Request) -> str:
    """The command of the driver. What it needs to know lies in the store."""
    return (
        f"python -m heliostat_jobs.submission.entry --root {quote(job.root.url)} --kind {job.kind} --name {job.name} "
        f"--submission {request.number}"
    )
