"""``kind: adapt`` by the command line: a finished run goes on at another resolution."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.distilling import FEATURES, FEATURES_ALONE, SMALL, distill_recipe_at, pretrained_project
from support.projects import heliostat
from support.whole_runs import newest_state, train_plainly
from support.worlds import tiny_recipe

import heliostat as library
from heliostat.config import load_recipe
from heliostat.config.adapt import AdaptRecipe
from heliostat.errors import InvalidValueError
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store
from heliostat.training.single_process import single_process_run
from heliostat_jobs.runs import load_run, open_run
from heliostat_jobs.train import run_spec, train

STEPS = 4
PX = 24


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run, ``tiny``."""
    return pretrained_project(tmp_path_factory.mktemp("project"))


def recipe_at(project: Path, name: str, steps: int = STEPS, **changes: Any) -> Path:
    tree = {
        **json.loads(tiny_recipe(steps=steps, base_lr=0.004).model_dump_json()),
        "kind": "adapt",
        "name": name,
        "init_from": {"run": "tiny"},
        "root": open_store(str(project / "root")).url,
        "checkpoint": {"every_steps": 2},
        "observe": {"flush_interval_s": 0.2, "log_every_steps": 1},
        **changes,
    }
    tree["augmentation"] |= {"global_px": PX}
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def resized(pos_embed_1ND: torch.Tensor, side: int) -> torch.Tensor:
    """Every position of the new grid by an independent bicubic convolution (a = -0.75), borders repeated."""
    old = int((pos_embed_1ND.shape[1] - 1) ** 0.5)
    grid_GGD = pos_embed_1ND[0, 1:].view(old, old, -1).double()
    scale = old / (side + 0.1)  # positions are (side + 0.1) / old as dense as before

    def weights(at: float) -> tuple[list[int], list[float]]:
        a, low = -0.75, int(at // 1)
        found = []
        for index in range(low - 1, low + 3):
            x = abs(at - index)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            found.append(near if x <= 1 else far)
        return [min(max(index, 0), old - 1) for index in range(low - 1, low + 3)], found

    patches: list[torch.Tensor] = []
    for row in range(side):
        for column in range(side):
            (ys, wys), (xs, wxs) = (weights((at + 0.5) * scale - 0.5) for at in (row, column))
            wide_44 = torch.outer(torch.tensor(wys, dtype=torch.float64), torch.tensor(wxs, dtype=torch.float64))
            patches.append((wide_44.unsqueeze(-1) * grid_GGD[ys][:, xs]).sum((0, 1)))
    patches_ND = torch.stack(patches).to(pos_embed_1ND.dtype)
    return torch.cat([pos_embed_1ND[:, :1], patches_ND.unsqueeze(0)], 1)


def gone_on(root: Store, recipe: AdaptRecipe) -> tuple[Network, Network]:
    """Student and teacher of the run that is gone on with, at the new grid."""
    networks = []
    before = load_run(root, "tiny")
    state = newest_state(run_store(root, "tiny"))
    for kind in ("master", "teacher"):
        network = Network(recipe)
        old = dict(Network(before).named_parameters())  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                value = state[kind, name].view_as(old[name])
                parameter.copy_(resized(value, PX // recipe.model.patch_px) if name.endswith("pos_embed") else value)
        networks.append(network)
    return networks[0], networks[1]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_adapt__goes_on_with_student_and_teacher_on_any_workers(project: Path) -> None:
    root = open_store(str(project / "root"))
    sizes = [{"global_px": PX, "local_px": 8, "weight": 1}, {"global_px": 16, "local_px": 12, "weight": 2}]
    path = recipe_at(project, "wide", scaling={"workers": 2}, crop_sizes=sizes)
    heliostat(
        "run",
        str(path),
        "--set",
        "training.zero_stage=3",
        "--set",
        "objective.gram.weight=2",
        "--set",
        "training.unfreeze_steps=2",
    )
    recipe = load_run(root, "wide")
    assert isinstance(recipe, AdaptRecipe)
    expected, _, _ = train_plainly(root, recipe, gone_on(root, recipe))
    found = newest_state(run_store(root, "wide"))
    for name, value in expected.items():
        if not name.endswith("qkv.bias"):  # see test_zero.py
            mine = found["teacher", name]
            assert (mine - value.flatten()).norm() <= 1e-5 * value.norm(), name


def test_adapt__needs_the_run_that_it_began_with_only_until_its_own_first_checkpoint(project: Path) -> None:
    root = open_store(str(project / "root"))
    path = recipe_at(project, "kept")
    whole = heliostat("run", str(path), "--single-process")
    shorter = recipe_at(project, "cut")
    resolved = load_recipe(shorter, [], {})
    run = open_run(resolved)
    assert isinstance(resolved.recipe, AdaptRecipe)
    with single_process_run(run_spec(resolved.recipe, run)) as worker:
        for step, _ in worker.steps():
            if step == 2:
                break
    moved = project / "root" / "runs" / "tiny"
    moved.rename(project / "tiny")
    try:
        again = heliostat("run", str(shorter), "--single-process")
    finally:
        (project / "tiny").rename(moved)
    assert again["loss"] == whole["loss"]
    mine, theirs = newest_state(run_store(root, "cut")), newest_state(run_store(root, "kept"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_adapt__refuses_networks_of_other_shapes(project: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"run tiny does not fit: objective.prototypes is 48 there and 64 here"):
        open_run(load_recipe(recipe_at(project, "misfit"), ["objective.prototypes=64"], {}))


def test_adapt__of_a_backbone_alone_trains_its_heads_first_and_is_watched(project: Path) -> None:
    root = open_store(str(project / "root"))
    knn = {"every_steps": 1, "bank": "tiny", "queries": "tiny", "neighbours": 5}
    path = recipe_at(
        project,
        "headless",
        init_from={"weights": str(project / "root" / "runs" / "tiny")},
        observe={"flush_interval_s": 0.2, "log_every_steps": 1, "knn": knn},
    )
    overrides = ["training.freeze_backbone_steps=2", "training.unfreeze_steps=0", "augmentation.global_px=16"]
    resolved = load_recipe(path, overrides, {})
    run = open_run(resolved)
    assert run.weights is not None
    assert isinstance(resolved.recipe, AdaptRecipe)
    trained = library.load_backbone(str(project / "root" / "runs" / "tiny")).state_dict()

    def moved(network: Network) -> set[str]:
        now = network.backbone.state_dict()
        return {name for name, value in trained.items() if not torch.equal(now[name], value)}

    with single_process_run(run_spec(resolved.recipe, run)) as worker:
        steps = worker.steps()
        for step, _ in steps:
            assert isinstance(worker.training, TrainingStep)
            assert bool(moved(worker.training.student)) == bool(moved(worker.training.teacher)) == (step >= 2)
    events = read_events(run_store(root, "headless"))
    (start,) = (event for event in events if event.type == EventType.START_JUDGED)
    frozen = [line.values["knn_top1"] for line in merged_curve(read_metrics(run_store(root, "headless")))[:2]]
    assert frozen == [start.fields["knn_top1"]] * 2
    assert all(event.fields["step"] >= 2 for event in events if event.type == EventType.KNN_FELL)


def test_adapt__says_so_if_the_first_steps_ruin_what_was_learnt(project: Path) -> None:
    root = open_store(str(project / "root"))
    knn = {"every_steps": 1, "bank": "tiny", "queries": "tiny", "neighbours": 5}
    path = recipe_at(project, "ruined", observe={"flush_interval_s": 0.2, "log_every_steps": 1, "knn": knn})
    overrides = ["training.base_lr=50", "training.ema_momentum=0", "training.warmup_steps=3"]
    train(load_recipe(path, overrides, {}), single_process=True)
    (start,) = (event for event in read_events(run_store(root, "ruined")) if event.type == EventType.START_JUDGED)
    fallen = [event for event in read_events(run_store(root, "ruined")) if event.type == EventType.KNN_FELL]
    assert fallen
    assert all(event.fields["after"] < event.fields["before"] - 0.01 for event in fallen)
    assert {event.fields["before"] for event in fallen} == {start.fields["knn_top1"]}


def test_adapt__goes_on_with_a_student_without_what_only_students_learn(project: Path) -> None:
    root = open_store(str(project / "root"))
    path = distill_recipe_at(project, "taught")
    tree = yaml.safe_load(path.read_text())
    tree["objective"] |= FEATURES
    tree["students"] = [{"name": "small", "model": SMALL}]
    path.write_text(yaml.safe_dump(tree))
    train(load_recipe(path, ["training.steps=1"], {}), single_process=True)
    model = {**tiny_recipe().model_dump()["model"], **SMALL}
    resolved = load_recipe(recipe_at(project, "after", init_from={"run": "taught"}, model=model), [], {})
    assert isinstance(resolved.recipe, AdaptRecipe)
    start = run_spec(resolved.recipe, open_run(resolved)).start
    assert start is not None
    student, average = start.load(root, resolved.recipe)
    state = newest_state(run_store(root, "taught"))
    for kind, network in (("master", student), ("teacher", average)):
        assert network.sub_modules == ("backbone", "dino_head", "ibot_head")
        for name, value in network.named_parameters():
            if not name.endswith("pos_embed"):
                assert torch.equal(value.flatten(), state[kind, f"small.{name}"]), name
    tree["objective"] |= FEATURES_ALONE
    path.write_text(yaml.safe_dump({**tree, "name": "headless-student"}))
    train(load_recipe(path, ["training.steps=1"], {}), single_process=True)
    unfit = recipe_at(project, "unfit", init_from={"run": "headless-student"}, model=model)
    with pytest.raises(InvalidValueError, match=r"run headless-student does not fit: its students have no heads"):
        open_run(load_recipe(unfit, [], {}))


def test_adapt__refuses_a_backbone_of_another_shape(project: Path) -> None:
    path = recipe_at(project, "other-shape", init_from={"weights": str(project / "root" / "runs" / "tiny")})
    with pytest.raises(InvalidValueError, match=r"runs/tiny does not fit: model.registers is 0 there and 4 here"):
        open_run(load_recipe(path, ["model.registers=4"], {}))


@pytest.mark.parametrize(
    ("weights", "is_known"), [("dinov2_vits14", True), ("dinov2_vits41", False), ("a/b.pth", True)]
)
def test_adapt__names_that_nothing_has_are_found_before_anything_is_submitted(
    project: Path, weights: str, is_known: bool
) -> None:
    told = heliostat("plan", str(recipe_at(project, "named", init_from={"weights": weights})))
    (check,) = (check for check in told["checks"] if check["check"].startswith("weights"))
    assert check["ok"] == is_known
