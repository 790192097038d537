"""What a pipeline's controller decides, and that one which dies anywhere starts every stage exactly once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.storage.local import LocalStore
from heliostat_jobs.pipelines.decide import (
    End,
    Finish,
    Skip,
    Start,
    Step,
    Stop,
    Submit,
    World,
    back_off_s,
    decide,
)
from heliostat_jobs.pipelines.log import PipelineEnded, PipelineEntry, PipelineLog, StageEnded, StageStarted
from heliostat_jobs.pipelines.state import Phase, PipelineState, StageSpec, StageState, fold
from heliostat_jobs.submission.records import JobEnd
from heliostat_jobs.submission.seen import JobPhase, JobSeen, seen_by_itself

DIAMOND = (
    StageSpec("curate", tries=3),
    StageSpec("pretrain", ("curate",), tries=3),
    StageSpec("distil-s", ("pretrain",)),
    StageSpec("distil-b", ("pretrain",), tries=2),
    StageSpec("evaluate", ("distil-s", "distil-b")),
)


def started(stage: str, try_: int = 1) -> StageStarted:
    return StageStarted(attempt=1, stage=stage, try_=try_, submission_id=f"p-{stage}-{try_}", inputs="")


def ended(stage: str, try_: int = 1, outcome: str = "succeeded", cause: str = "") -> StageEnded:
    return StageEnded.model_validate({"attempt": 1, "stage": stage, "try_": try_, "outcome": outcome, "cause": cause})


def world(jobs: dict[str, JobSeen] | None = None, **more: object) -> World:
    return World(jobs or {}, more.pop("done_before", lambda stage: None), more.pop("failed_for_s", {}), **more)  # type: ignore[arg-type]


ALIVE, ABSENT, UNKNOWN = (JobSeen(phase) for phase in (JobPhase.ALIVE, JobPhase.ABSENT, JobPhase.UNKNOWN))
GOOD = JobSeen(JobPhase.ENDED, "succeeded")


def failed(cause: str) -> JobSeen:
    """What is seen of a job that failed; of one that was lost nobody heard how."""
    if cause == "lost":
        return JobSeen(JobPhase.ENDED, "failed")
    return seen_by_itself(JobEnd(outcome="failed", exit_code=1, code=cause))


@pytest.mark.parametrize(
    ("entries", "seen", "step"),
    [
        ([], world(), Start("curate", 1)),
        ([started("curate")], world({"curate": ABSENT}), Submit("curate")),
        ([started("curate")], world({"curate": ALIVE}), None),
        ([started("curate")], world({"curate": UNKNOWN}), None),
        ([started("curate")], world({"curate": GOOD}), End("curate", GOOD)),
        ([started("curate"), ended("curate")], world(), Start("pretrain", 1)),
        ([], world(done_before=lambda stage: {}), Skip("curate", {})),
        ([started("curate"), ended("curate", 1, "failed", "lost")], world(), Start("curate", 2)),
        ([started("curate"), ended("curate", 1, "failed", "HS-RUN-003")], world(failed_for_s={"curate": 5.0}), None),
        (
            [started("curate"), ended("curate", 1, "failed", "HS-RUN-003")],
            world(failed_for_s={"curate": 11.0}),
            Start("curate", 2),
        ),
        # Another try would meet the same: the user has to change something.
        ([started("curate"), ended("curate", 1, "failed", "HS-CONF-004")], world(), Finish("failed")),
        # One branch failed for good, the other one still goes on.
        (
            [
                *(entry for stage in ("curate", "pretrain") for entry in (started(stage), ended(stage))),
                started("distil-s"),
                ended("distil-s", 1, "failed", "HS-RUN-003"),
                started("distil-b"),
            ],
            world({"distil-b": ALIVE}),
            None,
        ),
        (
            [
                *(entry for stage in ("curate", "pretrain", "distil-b") for entry in (started(stage), ended(stage))),
                started("distil-s"),
                ended("distil-s", 1, "failed", "HS-RUN-003"),
            ],
            world(),
            Finish("failed"),
        ),
        ([started("curate")], world({"curate": ALIVE}, is_cancelled=True), Stop("curate")),
        ([started("curate")], world({"curate": ABSENT}, is_cancelled=True), Stop("curate")),
        ([started("curate")], world({"curate": UNKNOWN}, is_cancelled=True), Stop("curate")),
        ([started("curate")], world({"curate": ALIVE}, is_cancelled=True, asked_to_stop={"curate"}), None),
        (
            [started("curate")],
            world({"curate": ABSENT}, is_cancelled=True, asked_to_stop={"curate"}),
            End("curate", JobSeen(JobPhase.ENDED, "cancelled")),
        ),
        ([started("curate"), ended("curate", 1, "cancelled")], world(is_cancelled=True), Finish("cancelled")),
        ([*(e for spec in DIAMOND for e in (started(spec.name), ended(spec.name)))], world(), Finish("succeeded")),
        ([PipelineEnded(attempt=1, outcome="failed")], world(), None),
    ],
)
def test_decide__table(entries: Sequence[PipelineEntry], seen: World, step: Step | None) -> None:
    assert decide(fold(DIAMOND, entries), seen) == step


def test_back_off__grows_and_is_none_where_the_stage_is_not_to_blame() -> None:
    def of(*causes: str) -> float:
        return back_off_s(StageState(causes=causes))

    assert [of(*["HS-RUN-003"] * count) for count in range(6)] == [0, 10, 60, 300, 300, 300]
    assert of("HS-RUN-003", "lost") == 0
    assert of("HS-RUN-005") == 0


class DiedError(Exception):
    """The controller is no more."""


@dataclass
class Cluster:
    """A cluster that runs jobs: a job of one id once."""

    script: dict[str, str]
    """Causes of failures by submission id; all others succeed."""
    bodies: Counter[str] = field(default_factory=Counter)
    """How often the code of each job was begun."""
    looked: Counter[str] = field(default_factory=Counter)

    def submit(self, submission_id: str) -> None:
        if not self.bodies[submission_id]:
            self.bodies[submission_id] += 1

    def seen(self, submission_id: str) -> JobSeen:
        if not self.bodies[submission_id]:
            return ABSENT
        self.looked[submission_id] += 1
        if self.looked[submission_id] < 2:
            return ALIVE
        cause = self.script.get(submission_id)
        return GOOD if cause is None else failed(cause)


def controller(log: list[PipelineEntry], cluster: Cluster, deadly_action: int, done: list[int]) -> None:
    """Steps until the pipeline has ended, or until so many are done: then it dies, right after the last one."""
    while (state := fold(DIAMOND, log)).outcome is None:
        running = {name: stage for name, stage in state.stages.items() if stage.phase is Phase.STARTED}
        jobs = {name: cluster.seen(stage.submission_id or "") for name, stage in running.items()}
        step = decide(state, world(jobs))
        if step is None:
            continue
        if isinstance(step, Submit):
            cluster.submit(state.stages[step.stage].submission_id or "")
        else:
            log.append(entry_of(step, state))
        done[0] += 1
        if done[0] == deadly_action:
            raise DiedError


def entry_of(step: Step, state: PipelineState) -> PipelineEntry:
    match step:
        case Start():
            return started(step.stage, step.try_)
        case End():
            return ended(step.stage, state.stages[step.stage].tries, step.seen.outcome, step.seen.cause)
        case Finish():
            return PipelineEnded(attempt=1, outcome=step.outcome)
        case _:
            raise AssertionError(step)


@pytest.mark.parametrize(
    "script",
    [{}, {"p-curate-1": "lost", "p-pretrain-1": "HS-RUN-005", "p-pretrain-2": "lost"}, {"p-distil-s-1": "HS-RUN-003"}],
)
def test_controller__killed_at_every_step_starts_every_try_exactly_once(script: dict[str, str]) -> None:
    calm_log: list[PipelineEntry] = []
    calm, actions = Cluster(script), [0]
    controller(calm_log, calm, 0, actions)
    outcome = fold(DIAMOND, calm_log).outcome
    assert outcome == ("failed" if "p-distil-s-1" in script else "succeeded")
    assert actions[0] >= 13
    for deadly in range(1, actions[0] + 1):
        log: list[PipelineEntry] = []
        cluster = Cluster(script)
        with pytest.raises(DiedError):
            controller(log, cluster, deadly, [0])
        controller(log, cluster, 0, [0])
        assert cluster.bodies == calm.bodies
        assert set(cluster.bodies.values()) == {1}
        assert fold(DIAMOND, log).outcome == outcome
        starts = [entry.submission_id for entry in log if isinstance(entry, StageStarted)]
        assert len(set(starts)) == len(starts)


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([f"p-{spec.name}-{number}" for spec in DIAMOND for number in (1, 2, 3)]),
        st.sampled_from(["lost", "HS-RUN-005", "HS-RUN-003", "HS-CONF-004"]),
    ),
    st.lists(st.integers(1, 12), max_size=4),
)
def test_controller__of_any_failures_and_deaths_ends_and_starts_nothing_before_its_inputs(
    script: dict[str, str], deaths: list[int]
) -> None:
    log: list[PipelineEntry] = []
    cluster = Cluster(script)
    for deadly in [*deaths, 0]:
        try:
            controller(log, cluster, deadly, [0])
        except DiedError:
            continue
    assert fold(DIAMOND, log).outcome in ("succeeded", "failed")
    finished: set[str] = set()
    for entry in log:
        if isinstance(entry, StageStarted):
            (spec,) = (spec for spec in DIAMOND if spec.name == entry.stage)
            assert set(spec.after) <= finished
            assert entry.try_ <= spec.tries
        if isinstance(entry, StageEnded) and entry.outcome == "succeeded":
            finished.add(entry.stage)
    assert all(count == 1 for count in cluster.bodies.values())


def test_log__is_what_the_store_holds(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log = PipelineLog(store)
    lease = log.acquire_lease("here")
    log.append(lease, started("curate"))
    log.append(lease, ended("curate"))
    assert fold(DIAMOND, PipelineLog(store).read()).stages["curate"].phase is Phase.SUCCEEDED
