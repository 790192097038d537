"""Small networks on tiles of photographs: a teacher, and students of it or alone. Part of bench_distill.py.

A tile's class is its photograph: about a hundred of clothing_cc0, or the 18 of the demo where that is not there. The
constants are those of the demo; a third of the tiles, by a hash of their bytes, is asked, the others train and vote.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heliostat.config import ResolvedRecipe, load_recipe
from heliostat.data.ingest import ingest
from heliostat.storage import open_store
from heliostat.storage.layout import run_store
from heliostat_cluster.local import local_ray
from heliostat_evaluation.backbones import ClassToken, trained_teacher
from heliostat_evaluation.features import extract_features
from heliostat_evaluation.knn import knn_accuracy
from heliostat_jobs.evaluate import load_labelled, with_classes_of
from heliostat_jobs.photographs import TILE_PX, write_tiles
from heliostat_jobs.runs import load_run

TRAIN, ASKED = "tiles", "tiles-asked"
_ASKED_OF = 3
_PHOTOGRAPH_OF, _SHORT_SIDE_PX = 8, 384
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


def _write_clothing_tiles(photographs: Path, folder: Path) -> None:
    """Every eighth photograph, 384 pixels on its short side, as ``folder/<photograph>/<row>-<column>.png``."""
    for source in sorted(photographs.rglob("*.jpg"))[::_PHOTOGRAPH_OF]:
        image = cv2.imread(str(source))
        assert image is not None
        scale = _SHORT_SIDE_PX / min(image.shape[:2])
        width, height = (round(side * scale) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        (folder / source.stem).mkdir(parents=True)
        for top in range(0, height - TILE_PX + 1, TILE_PX):
            for left in range(0, width - TILE_PX + 1, TILE_PX):
                tile = image[top : top + TILE_PX, left : left + TILE_PX]
                path = folder / source.stem / f"{top // TILE_PX:02d}-{left // TILE_PX:02d}.png"
                Image.fromarray(cv2.cvtColor(tile, cv2.COLOR_BGR2RGB)).save(path)


def write_datasets(root: str, folder: Path) -> str:
    """Both sides of the tiles, as datasets of the root; what photographs they are cut from."""
    tiles = folder / "all"
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    if data is None:
        write_tiles(tiles)
    else:
        _write_clothing_tiles(Path(data) / "clothing_cc0" / "train", tiles)
    for path in sorted(tiles.rglob("*.png")):
        side = ASKED if hashlib.sha256(path.read_bytes()).digest()[0] % _ASKED_OF == 0 else TRAIN
        target = folder / side / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with local_ray(num_cpus=2):
        for name in (TRAIN, ASKED):
            ingest(folder / name, open_store(root), name)
    return "the demo's photographs: HELIOSTAT_TEST_DATA is not set" if data is None else "clothing_cc0"


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
