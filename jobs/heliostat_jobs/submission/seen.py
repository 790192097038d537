"""What is seen of a job, and what a client does about it: pure."""

from dataclasses import dataclass
from enum import StrEnum

from heliostat_jobs.submission.records import JobEnd, Outcome, Submission

LOST = "lost"
"""The cause of an end that a job itself did not tell of."""


class JobPhase(StrEnum):
    """Of a Ray job, as far as anybody knows."""

    ABSENT = "absent"
    """The cluster has never heard of it, or has forgotten it when its head was started again."""
    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The cluster does not answer. Nothing follows from that."""


@dataclass(frozen=True, slots=True)
class JobSeen:
    """What is seen of a job.

    Attributes:
        phase: See ``JobPhase``. An end that lies in the store says ``ENDED``, whatever the cluster says.
        outcome: Of a job that has ended.
        fact: In words, from the cluster.
        end: What the job itself said of its end; none if it left no word.
    """

    phase: JobPhase
    outcome: Outcome = "failed"
    fact: str = ""
    end: JobEnd | None = None

    @property
    def cause(self) -> str:
        """Of a failure: an error code, or ``lost`` if the job left no word."""
        return LOST if self.end is None else self.end.code


def seen_by_itself(end: JobEnd) -> JobSeen:
    """What a job says of its own end."""
    return JobSeen(JobPhase.ENDED, end.outcome, end.fact, end)


class ToDo(StrEnum):
    """What somebody does who wants a job to run."""

    NOTHING = "nothing"
    """It is done already."""
    ATTACH = "attach"
    """It runs, or nobody knows: follow it."""
    HAND_OVER = "hand over"
    """The newest request was never handed to the cluster, or nothing came of it: the same again, under its id."""
    CLAIM = "claim"
    """A new request, under the next number."""


def to_do(
    newest: Submission | None,
    seen: JobSeen,
    *,
    is_finished: bool = False,
    is_elsewhere: bool = False,
    is_insisted: bool = False,
) -> ToDo:
    """What to do about a job that is wanted.

    Args:
        newest: Its newest submission.
        seen: What the cluster that this was handed to says of it.
        is_finished: Whether what the job is to make is there.
        is_elsewhere: Whether that is another cluster than the one on which the job is wanted now.
        is_insisted: Whether the user wants it here although nobody knows how it is there.
    """
    if is_finished:
        return ToDo.NOTHING
    if newest is None or newest.end is not None or seen.phase is JobPhase.ENDED:
        return ToDo.CLAIM
    if is_elsewhere and seen.phase is JobPhase.UNKNOWN:
        # It may run there unseen: that costs money. It harms nothing, as the new attempt's lease fences it off.
        return ToDo.CLAIM if is_insisted else ToDo.ATTACH
    if seen.phase is JobPhase.ABSENT:
        # Who handed over a job that was cancelled before anybody knew it would start what nobody wants.
        return ToDo.CLAIM if newest.cancelled is not None or is_elsewhere else ToDo.HAND_OVER
    return ToDo.ATTACH
