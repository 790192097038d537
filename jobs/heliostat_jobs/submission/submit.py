"""Handing a job to a cluster, once: whoever asks for the same again, at the same time or later, gets the same job.

Every step can be repeated by anybody. A request is created under a free number; a cluster runs a job of one id once. So
a client that dies between any two steps leaves nothing undone that the next one does not do, and two clients that race
end up with one job.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from shlex import quote

from heliostat.config import ResolvedRecipe, check_same_run, identity, lock, locked_identity
from heliostat.errors import ClusterUnreachableError, HeliostatError
from heliostat.storage import Store
from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.kinds import Job
from heliostat_jobs.locks import run_identity
from heliostat_jobs.submission import records
from heliostat_jobs.submission.access import ADDRESS_VARIABLE, cluster_url, is_loopback
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


def submit(order: Order, jobs: RayJobs, *, is_insisted: bool = False) -> Submission | None:
    """Have a job run on a cluster, unless it does or is done; its newest submission, None if it is done without any.

    Args:
        order: What is to run.
        jobs: Of the cluster.
        is_insisted: Whether it is to run there although the cluster that has it does not answer.

    Raises:
        ChangedConfigError: there is a job of this name with another configuration.
        HeliostatError: what the cluster or the store have to say.
    """
    store = order.job.store
    while True:
        newest = records.newest(store)
        check_identity(order.job, order.resolved, newest)
        is_elsewhere = newest is not None and newest.request.address != jobs.address
        seen = see(store, newest, lambda address: jobs if address == jobs.address else RayJobs.at(address))
        if is_elsewhere and newest is not None and seen.phase in (JobPhase.UNKNOWN, JobPhase.ABSENT):
            here = jobs.look(newest.request.submission_id, newest.request.nonce)
            seen = here if here.phase is JobPhase.ALIVE else seen  # one cluster may have several addresses
        finished = order.job.is_finished
        match to_do(newest, seen, is_finished=finished, is_elsewhere=is_elsewhere, is_insisted=is_insisted):
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
        package=wheel_name(order.package),
        secrets=order.secrets,
        inputs=order.inputs,
        config=lock(order.resolved),
        text=order.resolved.text,
    )
    return request if records.write_request(order.job.store, request) else records.read_request(order.job.store, number)


def wheel_name(package: str) -> str:
    """The file's name of a wheel, which holds the hash of its content."""
    return package.rpartition("/")[2]


def submission_id(name: str, number: int) -> str:
    """Of the Ray job of a job's submission; of a stage it is ``<pipeline>-<stage>-<attempt>``."""
    return f"{name}-{number}"


def hand_over(job: Job, request: Request, package: str, jobs: RayJobs) -> bool:
    """Give a request to the cluster; False if that has another job of its id, of another root perhaps."""
    if jobs.hand_over(request, package, entrypoint(job, request, wheel_name(package)), job.root.url):
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
        check_same_run(locked_identity(newest.request.config), identity(resolved.recipe))
    if (locked := run_identity(job.store)) is not None:
        check_same_run(locked, identity(resolved.recipe))


Reach = Callable[[str], RayJobs]
"""The jobs of the cluster at an address."""


def see(store: Store, submission: Submission | None, reach: Reach) -> JobSeen:
    """What is known of a submission, from itself or from the cluster that it was handed to.

    Args:
        store: The job's.
        submission: The one to look for.
        reach: Gives the jobs of the cluster that has it.
    """
    if submission is None:
        return JobSeen(JobPhase.ABSENT)
    if submission.end is not None:
        return seen_by_itself(submission.end)
    request = submission.request
    try:
        seen = reach(request.address).look(request.submission_id, request.nonce)
    except HeliostatError as error:
        return JobSeen(JobPhase.UNKNOWN, fact=error.fact)
    if seen.phase is JobPhase.ABSENT and records.has_begun(store, request.number):
        # Each submission is taken on once: the next one goes on from what this one has committed.
        seen = JobSeen(JobPhase.ENDED, fact="the cluster has forgotten it: its head was started again")
    # A driver says how it ended before it ends: whatever it had to say is there by now.
    end = records.read_end(store, request.number) if seen.phase is JobPhase.ENDED else None
    return seen if end is None else seen_by_itself(end)


def reach_of(address: str | None, insecure: bool = False) -> Reach:
    """Reaches clusters of this machine, and the one that the user has named; the token goes to no other.

    Args:
        address: That the user trusts; None is the one in the environment.
        insecure: Whether without token or TLS.
    """
    named = address or os.environ.get(ADDRESS_VARIABLE)
    trusted = None if not named else cluster_url(named)

    def reach(wanted: str) -> RayJobs:
        if wanted != trusted and not is_loopback(wanted):
            raise ClusterUnreachableError(
                f"the job was handed to {wanted}, and whether that is to be trusted with your token only you know",
                f"Give --address {wanted}, or set {ADDRESS_VARIABLE} to it",
            )
        return RayJobs.at(wanted, is_insecure_wanted=insecure)

    return reach


def entrypoint(job: Job, request: Request, package: str) -> str:
    """The command of the driver. What it needs to know lies in the store."""
    return (
        f"python -m heliostat_jobs.submission.entry --root {quote(job.root.url)} --kind {job.kind} --name {job.name} "
        f"--submission {request.number} --package {package}"
    )
