"""``kind: distill`` by the command line: from a pretraining run to students that are judged and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.distilling import FEATURES, FEATURES_ALONE, STEPS, distill_recipe_at, pretrained_project
from support.projects import heliostat
from support.small_datasets import store_dataset
from support.whole_runs import newest_state
from support.worlds import encoded_images

import heliostat as library
from heliostat.config import load_recipe
from heliostat.errors import (
    ArtifactChangedError,
    InvalidValueError,
    NoCheckpointError,
    RunNotFoundError,
    UnlabelledDatasetError,
)
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store, open_store
from heliostat.storage.layout import run_store
from heliostat_jobs.kinds import JOB_KINDS
from heliostat_jobs.runs import open_run
from heliostat_jobs.train import train


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run, ``tiny``."""
    return pretrained_project(tmp_path_factory.mktemp("project"))


def averages(run: Store) -> dict[str, torch.Tensor]:
    return {name: value for (kind, name), value in newest_state(run).items() if kind == "teacher"}


def objective_with(project: Path, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(distill_recipe_at(project, "any").read_text())["objective"]
    return {**tree, **changes}


def done_here(path: Path) -> dict[str, Any]:
    """What ``heliostat run`` does and tells, without a process of its own."""
    resolved = load_recipe(path, [], {})
    told = JOB_KINDS[resolved.recipe.kind].carry_out(resolved, None, None).to_json()
    found: dict[str, Any] = json.loads(json.dumps(told))
    return found


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_distill__on_workers_is_what_it_is_alone_and_every_student_is_judged_and_exported(project: Path) -> None:
    root = open_store(str(project / "root"))
    # Everything that all kinds of students can learn; of distillation tokens test_students.py tells.
    labels = {"weight": 1.0, "classes": 3, "teacher": "none"}
    objective = objective_with(project, **FEATURES, labels=labels)
    alone = train(load_recipe(distill_recipe_at(project, "alone", objective=objective), [], {}), single_process=True)
    assert alone.steps == STEPS
    heliostat("run", str(distill_recipe_at(project, "shared", objective=objective, scaling={"workers": 2})))
    expected, found = averages(run_store(root, "alone")), averages(run_store(root, "shared"))
    assert {name.split(".")[0] for name in expected} == {"small", "coarse", "conv"}
    for name, value in expected.items():
        if not name.endswith("qkv.bias"):  # see test_zero.py
            assert (found[name] - value).norm() <= 1e-5 * value.norm(), name
    for line in merged_curve(read_metrics(run_store(root, "shared"))):
        losses = [line.values[f"{student}.loss"] or 0.0 for student in ("small", "coarse", "conv")]
        assert line.values["loss"] == pytest.approx(sum(losses) / 3)
        assert min(line.values[term] or 0.0 for term in ("dino", "features", "features_cls", "label")) > 0
        assert (line.values["flops_per_image"] or 0) > 0

    for student, width in (("small", 16), ("coarse", 32), ("conv", 24)):
        backbone = library.load_backbone(run_store(root, "shared").url, student=student)
        assert backbone.config.embed_dim == width
        for name, parameter in backbone.named_parameters():
            assert torch.equal(parameter.flatten(), found[f"{student}.backbone.{name}"]), name
        judged = project / f"judge-{student}.yaml"
        knn = {"neighbours": [5], "temperature": 0.07}
        sets = {"run": "shared", "student": student, "bank": "tiny", "queries": "tiny", "knn": knn}
        judged.write_text(yaml.safe_dump({"kind": "evaluate", "name": f"knn-{student}", "root": root.url, **sets}))
        told = heliostat("run", str(judged)) if student == "small" else done_here(judged)
        assert 0 < told["knn"]["trained"]["5"]["top1"] <= 1
        exported = project / f"export-{student}.yaml"
        exported.write_text(
            yaml.safe_dump(
                {"kind": "export", "name": f"{student}", "root": root.url, "run": "shared", "student": student}
            )
        )
        assert (heliostat("run", str(exported)) if student == "small" else done_here(exported))["files"]


def test_distill__a_backbone_from_elsewhere_teaches_its_features(project: Path) -> None:
    weights = str(project / "root" / "runs" / "tiny")
    alone = objective_with(project, **FEATURES_ALONE)
    by_weights = distill_recipe_at(project, "by-weights", objective=alone, teacher={"weights": weights})
    by_run = distill_recipe_at(project, "by-run", objective=alone)
    for path in (by_weights, by_run):
        heliostat("plan", str(path), "--gpus", "1")
        train(load_recipe(path, [], {}), single_process=True)
    root = open_store(str(project / "root"))
    curves = [merged_curve(read_metrics(run_store(root, name))) for name in ("by-weights", "by-run")]
    features = [[line.values["features"] for line in curve] for curve in curves]
    assert features[0] == features[1]  # the same backbone, whether it came as a run or as weights
    averages_of = [averages(run_store(root, name)) for name in ("by-weights", "by-run")]
    assert all(torch.equal(value, averages_of[1][name]) for name, value in averages_of[0].items())
    assert {name.split(".")[1] for name in averages_of[0]} == {"backbone", "feature_head"}
    assert library.load_backbone(run_store(root, "by-weights").url, student="small").config.embed_dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**FEATURES, "teacher_width": 48}, r"embed_dim is 32, objective.teacher_width is 48.*teacher_width to 32"),
        ({"labels": {"weight": 1.0, "classes": 4, "teacher": "none"}}, r"classes is 4, and dataset tiny has 3 labels"),
    ],
)
def test_distill__refuses_widths_and_classes_that_do_not_fit(
    project: Path, changes: dict[str, Any], message: str
) -> None:
    path = distill_recipe_at(project, "unfit", objective=objective_with(project, **changes))
    with pytest.raises(InvalidValueError, match=message):
        open_run(load_recipe(path, [], {}))
    told = heliostat("plan", str(path))
    assert [check["ok"] for check in told["checks"]].count(False) == 1


def test_distill__refuses_labels_where_there_are_none(project: Path) -> None:
    store_dataset(open_store(str(project / "root")), encoded_images(), "bare")
    objective = objective_with(project, labels={"weight": 1.0, "classes": 4, "teacher": "none"})
    path = distill_recipe_at(project, "bare", objective=objective, dataset={"name": "bare", "window_groups": 2})
    with pytest.raises(UnlabelledDatasetError, match="dataset bare has no labels"):
        open_run(load_recipe(path, [], {}))


def test_distill__refuses_what_does_not_fit(project: Path) -> None:
    def opened(name: str, overrides: list[str]) -> None:
        open_run(load_recipe(distill_recipe_at(project, name), overrides, {}))

    with pytest.raises(InvalidValueError, match=r"48 prototypes in the teacher and 64 here.*prototypes to 48"):
        opened("prototypes", ["objective.prototypes=64"])
    with pytest.raises(
        InvalidValueError, match=r"global_px 12 is not made of whole patches.*coarse 8.*global_px to 16"
    ):
        opened("patches", ["augmentation.global_px=12"])
    with pytest.raises(RunNotFoundError, match=r"no run .nobody."):
        opened("missing", ["teacher.run=nobody"])
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 7.*of 2"):
        opened("step", ["teacher.step=7"])
    train(load_recipe(distill_recipe_at(project, "first"), [], {}), single_process=True)
    with pytest.raises(InvalidValueError, match=r"teacher.run first is a run of kind distill"):
        opened("chain", ["teacher.run=first"])
    with pytest.raises(InvalidValueError, match="no student was named, but run first has small, coarse, conv"):
        library.load_backbone(str(project / "root" / "runs" / "first"))
    with pytest.raises(InvalidValueError, match="student tiny was asked for, but run first has small, coarse, conv"):
        library.load_backbone(str(project / "root" / "runs" / "first"), student="tiny")


def test_distill__is_bound_to_the_checkpoint_it_began_with(project: Path) -> None:
    path = distill_recipe_at(project, "bound")
    resolved = load_recipe(path, [], {})
    teacher = open_run(resolved).start
    assert teacher is not None
    assert (teacher["name"], teacher["step"]) == ("tiny", 2)
    root = open_store(str(project / "root"))
    lock = json.loads(run_store(root, "bound").get("config.lock.json"))
    lock["start"]["manifest_sha256"] = "0" * 64
    run_store(root, "bound").put("config.lock.json", json.dumps(lock).encode())
    with pytest.raises(ArtifactChangedError, match="checkpoint of step 2 of tiny"):
        train(resolved, single_process=True)
