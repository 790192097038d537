"""What a pipeline's controller does next: a pure function of the log and of what is seen of the jobs.

One step at a time. A step is either an entry for the log or something that may be done any number of times (submitting
a job of a given id, asking one to stop), so that a controller that dies between any two of them leaves nothing undone
and nothing done twice.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.pipelines.state import DONE, Phase, PipelineState, StageSpec, StageState
from heliostat_jobs.submission.records import Outcome
from heliostat_jobs.submission.seen import JobPhase, JobSeen

_BACK_OFF_S = (10.0, 60.0, 300.0)
"""Before the second try, the third, and all later ones."""
_SOON_CAUSES = ("HS-RUN-005", "lost")
"""Of which a stage is not to blame: it is tried again at once."""


@dataclass(frozen=True, slots=True)
class Start:
    """Write that a stage starts."""

    stage: str
    try_: int


@dataclass(frozen=True, slots=True)
class Skip:
    """Write that a stage need not run."""

    stage: str
    artifacts: Artifacts


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand a stage's job to the cluster, which knows it by its id if it has it already."""

    stage: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a stage's job to end."""

    stage: str


@dataclass(frozen=True, slots=True)
class End:
    """Write how a try of a stage ended."""

    stage: str
    seen: JobSeen


@dataclass(frozen=True, slots=True)
class Finish:
    """Write how the pipeline ended."""

    outcome: Outcome


Step = Start | Skip | Submit | Stop | End | Finish


@dataclass(frozen=True, slots=True)
class World:
    """What a controller sees.

    Attributes:
        jobs: By stage, of those that were started and have not ended.
        done_before: Artifacts of a stage that was done from the same inputs before; none if it was not.
        failed_for_s: Seconds since each stage's last failure, as far as this controller has seen it.
        is_cancelled: Whether somebody asked for the end.
        asked_to_stop: Stages whose jobs were asked already.
    """

    jobs: Mapping[str, JobSeen]
    done_before: Callable[[str], Artifacts | None]
    failed_for_s: Mapping[str, float]
    is_cancelled: bool = False
    asked_to_stop: Collection[str] = ()


def decide(state: PipelineState, world: World) -> Step | None:
    """The next step; none while there is nothing to do but to look again later."""
    if state.outcome is not None:
        return None
    for spec in state.specs:
        step = _of_started(spec.name, world) if state.stages[spec.name].phase is Phase.STARTED else None
        if step is not None:
            return step
    for spec in state.specs:
        if state.stages[spec.name].phase is Phase.WAITING and not world.is_cancelled:
            step = _of_waiting(spec, state, world)
            if step is not None:
                return step
    return _finish(state, world)


def _of_started(stage: str, world: World) -> Step | None:
    seen = world.jobs.get(stage, JobSeen(JobPhase.UNKNOWN))
    if seen.phase is JobPhase.ENDED:
        return End(stage, seen)
    if world.is_cancelled and stage not in world.asked_to_stop:
        return Stop(stage)  # also of a job that nobody knows yet: should it come all the same, it ends at once
    if seen.phase is JobPhase.ABSENT:
        return End(stage, JobSeen(JobPhase.ENDED, "cancelled")) if world.is_cancelled else Submit(stage)
    return None


def _of_waiting(spec: StageSpec, state: PipelineState, world: World) -> Step | None:
    if any(state.stages[before].phase not in DONE for before in spec.after):
        return None
    mine = state.stages[spec.name]
    if not mine.tries and (artifacts := world.done_before(spec.name)) is not None:
        return Skip(spec.name, artifacts)
    if world.failed_for_s.get(spec.name, float("inf")) < back_off_s(mine):
        return None
    return Start(spec.name, mine.tries + 1)


def back_off_s(stage: StageState) -> float:
    """Seconds between the last failure of a stage and its next try."""
    if not stage.causes or stage.causes[-1].startswith(_SOON_CAUSES):
        return 0.0
    return _BACK_OFF_S[min(len(stage.causes), len(_BACK_OFF_S)) - 1]


def _finish(state: PipelineState, world: World) -> Step | None:
    phases = {name: stage.phase for name, stage in state.stages.items()}
    if Phase.STARTED in phases.values():
        return None
    if world.is_cancelled:
        return Finish("cancelled")
    if all(phase in DONE for phase in phases.values()):
        return Finish("succeeded")
    can_go_on = any(phases[spec.name] is Phase.WAITING and not _is_blocked(spec, state) for spec in state.specs)
    return None if can_go_on else Finish("failed")


def _is_blocked(spec: StageSpec, state: PipelineState) -> bool:
    """Whether a stage waits for one that will never be done."""
    by_name = {each.name: each for each in state.specs}
    before = [by_name[name] for name in spec.after]
    return any(
        state.stages[each.name].phase in (Phase.FAILED, Phase.CANCELLED) or _is_blocked(each, state) for each in before
    )
