"""Small networks on tiles of photographs: a teacher, and students of it or alone. Part of bench_distill.py.

The tiles are those of distilled_tiles.py, the constants those of the demo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distilled_tiles import ASKED, TRAIN
from heliostat.config import ResolvedRecipe, load_recipe
from heliostat.storage import open_store
from heliostat.storage.layout import run_store
from heliostat_evaluation.backbones import ClassToken, trained_teacher
from heliostat_evaluation.features import extract_features
from heliostat_evaluation.knn import knn_accuracy
from heliostat_jobs.evaluate import load_labelled, with_classes_of
from heliostat_jobs.runs import load_run

_NEIGHBOURS = 10
_VALUES = {"arch": "custom", "patch_px": 8, "layer_scale": 1.0, "drop_path": 0.0}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "narrow": {**_VALUES, "embed_dim": 64, "depth": 4, "heads": 2},
    "shallow": {**_VALUES, "embed_dim": 96, "depth": 2, "heads": 3},
    "thin": {**_VALUES, "embed_dim": 48, "depth": 6, "heads": 2},
}


@dataclass(frozen=True, slots=True)
class Judged:
    """Accuracies of a backbone's class token on the tiles that are asked."""

    knn: float
    linear: float


@dataclass(frozen=True, slots=True)
class Runs:
    """The recipes of all runs under one root."""

    root: str
    folder: Path
    """Where recipes are written."""
    steps: int

    def teacher(self, steps: int) -> ResolvedRecipe:
        """The demo's network and constants."""
        return self._resolved({"name": "teacher"}, steps)

    def alone(self, student: str, seed: int) -> ResolvedRecipe:
        """A student that nobody teaches."""
        return self._resolved({"name": f"alone-{student}-{seed}", "seed": seed, "model": dict(STUDENTS[student])})

    def taught(self, students: Sequence[str], seed: int, *, fixed: bool = False, **changes: Any) -> ResolvedRecipe:
        """One run of some students of the teacher; ``fixed`` crops do not change from epoch to epoch."""
        listed = [{"name": name, "model": dict(STUDENTS[name])} for name in students]
        values = {
            "kind": "distill",
            "name": f"taught-{'-'.join(students)}-{seed}",
            "seed": seed,
            "teacher": {"run": "teacher"},
            "students": listed,
        }
        return self._resolved({**values, **changes}, fixed=fixed)

    def _resolved(self, changes: Mapping[str, Any], steps: int | None = None, *, fixed: bool = False) -> ResolvedRecipe:
        values = yaml.safe_load((files("heliostat_jobs") / "recipes" / "demo.yaml").read_text())
        values |= {"root": self.root, "dataset": {"name": TRAIN}, **changes}
        if values["kind"] == "distill":
            del values["model"]
        values["augmentation"] |= {"fixed": fixed}
        values["training"] |= {"steps": steps or self.steps, "zero_stage": 0}
        values["checkpoint"] = {"every_steps": steps or self.steps}
        path = self.folder / f"{values['name']}.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path, [], {})


def judged(root: str, run: str, student: str | None = None) -> Judged:
    """What a run's network knows, or one of its students' averages."""
    store = open_store(root)
    recipe = load_run(store, run)
    px = recipe.augmentation.global_px
    bank = load_labelled(store, TRAIN, px)
    asked = with_classes_of(bank, load_labelled(store, ASKED, px))
    token = ClassToken(trained_teacher(run_store(store, run), recipe, student=student).backbone)
    voters, questions = (extract_features(token, each.batches(), ids=each.ids) for each in (bank, asked))
    knn = knn_accuracy(voters.features_ND, voters.labels_N, questions.features_ND, questions.labels_N, ks=[_NEIGHBOURS])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(voters.features_ND.numpy(), voters.labels_N.numpy())
    linear = probe.score(questions.features_ND.numpy(), questions.labels_N.numpy())
    return Judged(knn[_NEIGHBOURS].top1, float(linear))
