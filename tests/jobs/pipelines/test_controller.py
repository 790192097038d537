"""The controller on a real store: killed before every write it starts each stage once; it skips, retries and cancels.

The cluster is a stand-in that runs a job of one id once; what is tested is what the controller makes of it. The same
on a real cluster is in ``tests/jobs/submission/test_ray_head.py``.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from support.mortal_store import Fuse, Killed, MortalStore
from support.small_datasets import store_dataset
from support.worlds import encoded_images

from heliostat.config import ResolvedRecipe, load_recipe, lock, renamed
from heliostat.config.pipeline import PipelineRecipe
from heliostat.errors import ClusterUnreachableError, FencedError
from heliostat.storage import Store
from heliostat.storage.local import LocalStore
from heliostat_jobs.artifacts import dataset_artifact
from heliostat_jobs.kinds import Job
from heliostat_jobs.pipelines.controller import Controller
from heliostat_jobs.pipelines.log import PipelineLog, StageStarted
from heliostat_jobs.pipelines.state import Phase, PipelineState
from heliostat_jobs.submission import records
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.records import Cancelled, JobEnd, Request
from heliostat_jobs.submission.seen import JobPhase, JobSeen

STAGES = [
    {"name": "curate", "recipe": "curate.yaml"},
    {
        "name": "train-{each}",
        "recipe": "train.yaml",
        "from": "curate.dataset",
        "each": ["1", "2"],
        "set": ["seed={each}"],
    },
    {"name": "judge", "recipe": "judge.yaml", "after": ["train-1", "train-2"], "tries": 2},
]
RECIPES: dict[str, dict[str, object]] = {
    "curate.yaml": {"kind": "curate", "name": "x", "pool": ["photos"]},
    "train.yaml": {
        "kind": "pretrain",
        "name": "x",
        "dataset": {"name": "x"},
        "model": {"arch": "vit_s"},
        "training": {"steps": 4},
    },
    "judge.yaml": {"kind": "evaluate", "name": "x", "run": "some", "bank": "photos", "queries": "photos"},
}


def write_pipeline(folder: Path, name: str = "p", **changed: dict[str, object]) -> ResolvedRecipe:
    for file, recipe in RECIPES.items():
        (folder / file).write_text(yaml.safe_dump({**recipe, **changed.get(file.partition(".")[0], {})}))
    pipeline = {"kind": "pipeline", "name": name, "root": str(folder / "root"), "stages": STAGES}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return load_recipe(folder / "pipeline.yaml", [], {})


@dataclass
class StandIn(RayJobs):
    """Runs a job of one id once; a job is done after it was looked at twice, unless ``script`` says otherwise.

    It runs the body of a stage on a store of its own: that does not die with the controller.
    """

    root: Store
    script: dict[str, JobEnd | None] = field(default_factory=dict)
    """By submission id: another end than a good one; None never ends."""
    handed_over: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)
    stopped: list[str] = field(default_factory=list)
    jobs: dict[str, tuple[Job, Request]] = field(default_factory=dict)
    address: str = "http://127.0.0.1:8265"
    silent: int = 0
    """How many hand-overs nobody answers, though the first of them arrives."""

    def hand_over(self, request: Request, package: str, entrypoint: str, root: str) -> bool:
        self._take(request, entrypoint)
        if self.silent:
            self.silent -= 1
            raise ClusterUnreachableError("nobody answers", "Wait")
        return True

    def _take(self, request: Request, entrypoint: str) -> None:
        self.handed_over[request.submission_id] += 1
        if not self.bodies[request.submission_id]:
            self.bodies[request.submission_id] += 1
            kind, name = (entrypoint.split(f"--{word} ")[1].split()[0] for word in ("kind", "name"))
            self.jobs[request.submission_id] = Job(self.root, kind, name), request

    def look(self, submission_id: str, nonce: str) -> JobSeen:
        if submission_id not in self.jobs:
            return JobSeen(JobPhase.ABSENT)
        self.looks[submission_id] += 1
        job, request = self.jobs[submission_id]
        assert request.nonce == nonce
        if submission_id in self.stopped:
            records.write_end(job.store, request.number, JobEnd(outcome="cancelled", exit_code=130))
        elif self.looks[submission_id] < 2 or self.script.get(submission_id, JobEnd) is None:
            return JobSeen(JobPhase.ALIVE)
        else:
            records.write_end(job.store, request.number, self.script.get(submission_id) or self._done(job))
        return JobSeen(JobPhase.ENDED)

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)

    def _done(self, job: Job) -> JobEnd:
        if job.kind != "curate":
            return JobEnd(outcome="succeeded", exit_code=0)
        made = store_dataset(self.root, encoded_images()[:4], job.name)
        return JobEnd(outcome="succeeded", exit_code=0, artifacts=dataset_artifact(job.name, made.sha256))


@pytest.fixture
def root(tmp_path: Path) -> LocalStore:
    root = LocalStore(tmp_path / "root")
    store_dataset(root, encoded_images()[:6])
    return root


def controller(resolved: ResolvedRecipe, root: Store, cluster: StandIn) -> Controller:
    assert isinstance(resolved.recipe, PipelineRecipe)
    request = Request(
        number=1,
        submission_id=f"{resolved.recipe.name}-1",
        address=cluster.address,
        package="code.whl",
        config=lock(resolved),
        text=resolved.text,
    )
    return Controller(resolved.recipe, root, request, cluster, look_s=0.0)


def carry_out(
    resolved: ResolvedRecipe, root: Store, cluster: StandIn, wait: Callable[[float], None] = lambda seconds: None
) -> PipelineState:
    return controller(resolved, root, cluster).run(wait)


def test_controller__killed_before_every_write_starts_each_stage_once(tmp_path: Path) -> None:
    resolved = write_pipeline(tmp_path)
    deaths = 0
    while True:
        root = LocalStore(tmp_path / f"root-{deaths}")
        store_dataset(root, encoded_images()[:6])
        cluster = StandIn(root)
        try:
            state = carry_out(resolved, MortalStore(root, Fuse(deaths)), cluster)
        except Killed:
            state = carry_out(resolved, root, cluster)
            is_over = False
        else:
            is_over = True
        assert state.outcome == "succeeded"
        assert cluster.bodies == Counter(f"p-{name}-1" for name in ("curate", "train-1", "train-2", "judge"))
        if is_over:
            break
        deaths += 1
    # A lease, an end, and for each of four stages: start, request, end; three of them are remembered besides.
    assert deaths >= 2 + 3 * 4 + 3


def test_controller__hands_on_what_was_made_with_its_hash(tmp_path: Path, root: LocalStore) -> None:
    cluster = StandIn(root)
    carry_out(write_pipeline(tmp_path), root, cluster)
    _, request = cluster.jobs["p-train-1-1"]
    assert request.inputs["curate.dataset"]["name"] == "p-curate"
    assert len(str(request.inputs["curate.dataset"]["manifest_sha256"])) == 64
    assert request.config["values"]["dataset.name"]["value"] == "p-curate"
    assert request.package == "code.whl"


def test_controller__skips_what_another_pipeline_has_made_of_the_same(tmp_path: Path, root: LocalStore) -> None:
    carry_out(write_pipeline(tmp_path), root, StandIn(root))
    cluster = StandIn(root)
    changed = write_pipeline(tmp_path, "q", train={"training": {"steps": 5}})
    state = carry_out(changed, root, cluster)
    assert {name: stage.phase for name, stage in state.stages.items()} == {
        "curate": Phase.SKIPPED,
        "train-1": Phase.SUCCEEDED,
        "train-2": Phase.SUCCEEDED,
        "judge": Phase.SUCCEEDED,  # of a run that has no checkpoint: nobody knows what its result follows from
    }
    assert set(cluster.bodies) == {"q-train-1-1", "q-train-2-1", "q-judge-1"}
    _, request = cluster.jobs["q-train-1-1"]
    assert request.config["values"]["dataset.name"]["value"] == "p-curate"


def test_controller__does_not_skip_what_reads_another_dataset_than_then(tmp_path: Path, root: LocalStore) -> None:
    carry_out(write_pipeline(tmp_path), root, StandIn(root))
    root.delete("datasets/photos/manifest.json")
    store_dataset(root, encoded_images()[:5])
    cluster = StandIn(root)
    carry_out(write_pipeline(tmp_path, "q"), root, cluster)
    assert "q-curate-1" in cluster.bodies


def test_controller__tries_again_and_gives_up_where_that_cannot_help(tmp_path: Path, root: LocalStore) -> None:
    lost = JobEnd(outcome="failed", exit_code=1, code="HS-RUN-005", fact="preempted")
    wrong = JobEnd(outcome="failed", exit_code=2, code="HS-DATA-003", fact="no such dataset")
    cluster = StandIn(root, {"p-train-1-1": lost, "p-judge-1": wrong})
    resolved = write_pipeline(tmp_path)
    state = carry_out(resolved, root, cluster)
    assert state.outcome == "failed"
    assert state.stages["train-1"].tries == 2
    assert state.stages["judge"].phase is Phase.FAILED
    assert state.stages["judge"].causes == ("HS-DATA-003",)
    state = carry_out(resolved, root, cluster)  # somebody has put it right, and resumes
    assert state.outcome == "succeeded"
    assert state.stages["judge"].tries == 2
    assert cluster.bodies["p-curate-1"] == cluster.bodies["p-judge-2"] == 1


def test_controller__cancelled_stops_what_runs_and_resumed_starts_it_anew(tmp_path: Path, root: LocalStore) -> None:
    cluster = StandIn(root, {"p-train-1-1": None, "p-train-2-1": None})
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            raise KeyboardInterrupt

    resolved = write_pipeline(tmp_path)
    state = carry_out(resolved, root, cluster, wait)
    assert state.outcome == "cancelled"
    assert sorted(cluster.stopped) == ["p-train-1-1", "p-train-2-1"]
    assert records.is_cancelled(Job(root, "pretrain", "p-train-1").store, 1)
    state = carry_out(resolved, root, cluster)
    assert state.outcome == "succeeded"
    assert cluster.bodies["p-train-1-2"] == 1
    assert cluster.bodies["p-curate-1"] == 1


def test_controller__of_two_the_older_stops(tmp_path: Path, root: LocalStore) -> None:
    resolved = write_pipeline(tmp_path)
    cluster = StandIn(root)
    log = PipelineLog(Job(root, "pipeline", "p").store)

    def wait(seconds: float) -> None:
        log.acquire_lease("another one")

    with pytest.raises(FencedError):
        carry_out(resolved, root, cluster, wait)
    assert carry_out(resolved, root, cluster).outcome == "succeeded"
    assert set(cluster.bodies.values()) == {1}
    starts = [entry.submission_id for entry in log.read() if isinstance(entry, StageStarted)]
    assert len(starts) == len(set(starts)) == 4


def test_controller__names_a_stage_that_made_nothing_to_start_from(tmp_path: Path, root: LocalStore) -> None:
    cluster = StandIn(root, {"p-curate-1": JobEnd(outcome="succeeded", exit_code=0)})
    state = carry_out(write_pipeline(tmp_path), root, cluster)
    assert state.outcome == "failed"
    assert state.stages["train-1"].causes == ("HS-RUN-014",)
    assert set(cluster.bodies) == {"p-curate-1"}


def test_controller__does_not_take_another_job_of_a_stages_name_for_it(tmp_path: Path, root: LocalStore) -> None:
    carry_out(write_pipeline(tmp_path), root, StandIn(root))
    for info in list(root.list("pipelines/")):
        root.delete(info.key)
    state = carry_out(write_pipeline(tmp_path, train={"training": {"steps": 7}}), root, StandIn(root))
    assert state.outcome == "failed"
    assert state.stages["train-1"].causes == ("HS-CONF-008",)


def test_controller__a_fork_has_jobs_of_its_own(tmp_path: Path, root: LocalStore) -> None:
    carry_out(write_pipeline(tmp_path), root, StandIn(root))
    changed = write_pipeline(tmp_path, train={"training": {"steps": 7}})
    forked = replace(changed, recipe=renamed(changed.recipe, "fork"))
    cluster = StandIn(root)
    state = carry_out(forked, root, cluster)
    assert state.outcome == "succeeded"
    assert set(cluster.bodies) == {"fork-train-1-1", "fork-train-2-1", "fork-judge-1"}
    assert state.stages["curate"].phase is Phase.SKIPPED


def test_controller__cancelled_while_it_was_dead_goes_on_when_it_is_resumed(tmp_path: Path, root: LocalStore) -> None:
    cluster = StandIn(root, {"p-train-1-1": None, "p-train-2-1": None})
    resolved = write_pipeline(tmp_path)
    waits = 0

    def die(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            raise Killed

    with pytest.raises(Killed):
        carry_out(resolved, root, cluster, die)
    for name in ("p-train-1", "p-train-2"):
        records.write_cancelled(Job(root, "pretrain", name).store, 1, Cancelled(by="me"))
        cluster.stop(f"{name}-1")
    state = carry_out(resolved, root, cluster)
    assert state.outcome == "succeeded"
    assert cluster.bodies["p-train-1-2"] == cluster.bodies["p-train-2-2"] == cluster.bodies["p-curate-1"] == 1


def test_controller__outlives_a_cluster_that_does_not_answer(tmp_path: Path, root: LocalStore) -> None:
    cluster = StandIn(root, silent=5)
    assert carry_out(write_pipeline(tmp_path), root, cluster).outcome == "succeeded"
    assert set(cluster.bodies.values()) == {1}
