"""``heliostat demo``: the whole path once, small: ingest, pre-train, commit, evaluate, report.

With chaos, the same on a simulated cluster that loses a worker and a node meanwhile.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CommitLog, has_ended, live_checkpoints
from heliostat.config import load_recipe
from heliostat.config.evaluate import EvaluateRecipe, KnnConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.yaml_text import show_value
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits
from heliostat.data.ingest import ingest, prepare
from heliostat.data.manifest import load_manifest
from heliostat.data.sources import Item, RefusedItem, Source, Unit
from heliostat.errors import NoImagesError
from heliostat.observe.events import read_events
from heliostat.observe.interruptions import interruptions
from heliostat.observe.metrics import read_metrics
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store, run_store
from heliostat.training.inputs import sample_source
from heliostat.training.ledger import planned_digest
from heliostat_cluster.local import local_ray
from heliostat_cluster.simulated import simulated_cluster
from heliostat_evaluation.datasets import Pixels, check_labels
from heliostat_jobs.chaos import NODES, SETTINGS, train_under_chaos
from heliostat_jobs.demo_report import write_report
from heliostat_jobs.evaluate import PIXELS, TRAINED, UNTRAINED, evaluate
from heliostat_jobs.ingest import show_ingest
from heliostat_jobs.photographs import pictured, write_tiles
from heliostat_jobs.run_report import REPORT_KEY
from heliostat_jobs.runs import OpenedRun, open_run
from heliostat_jobs.train import cpus_needed, train_on_ray

BUILT_IN = "photographs"
_HOLDOUT_OF = 5
"""One image of five is held out for the evaluation: never trained on."""
_PICTURE_PX = (288, 384)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo shows."""

    run: str
    root: str
    knn_untrained: float
    knn_pixels: float
    knn_trained: float
    images_per_s: float
    interruptions: int
    steps_lost: int
    """Steps that had to be computed again."""
    is_exact: bool
    """The ids of all images that the loss consumed are those that were planned, in that order."""
    images_seen: int
    report: str

    def to_json(self) -> dict[str, object]:
        """The line that ``--json`` ends with."""
        return {
            "knn_untrained": self.knn_untrained,
            "knn_trained": self.knn_trained,
            "images_per_s": self.images_per_s,
            "report": self.report,
            "knn_raw_pixels": self.knn_pixels,
            "run": self.run,
            "interruptions": self.interruptions,
            "steps_lost": self.steps_lost,
            # Who saw other images than planned does not know how many of them.
            "samples_lost": 0 if self.is_exact else None,
            "samples_repeated": 0 if self.is_exact else None,
        }


def demo(
    data: Path | None, out: Path, overrides: list[str], environ: Mapping[str, str], *, chaos: bool = False
) -> DemoResult:
    """Run the demo on built-in photographs or on a user's folder of labelled images.

    Args:
        data: Folder with one sub-folder per class; None for the built-in photographs.
        out: Root of everything that is written.
        overrides: ``a.b=value`` for the recipe.
        environ: Where overrides are looked for too.
        chaos: Whether to train on a simulated cluster that loses a worker and a node; from the main thread only.
    """
    dataset = BUILT_IN if data is None else _dataset_name(data)
    root = open_store(str(out))
    folder = write_tiles(out / "source" / BUILT_IN) if data is None else data
    source = prepare(folder, root, dataset)
    check_both_sides(source)
    fixed = [f"root={show_value(str(out))}", f"dataset.name={show_value(dataset)}"]
    overrides = [f"name=demo-{_first_unfinished(root)}", *(SETTINGS if chaos else ()), *overrides, *fixed]
    with as_file(files("heliostat_jobs") / "recipes" / "demo.yaml") as path:
        resolved = load_recipe(path, overrides, environ)
        recipe = resolved.recipe
        assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- the shipped recipe is one
        _say("demo: Ray is starting")
        with local_ray(cpus_needed(recipe)):
            _ingest(source, root, dataset)
            run = open_run(resolved)
            if not chaos:
                train_on_ray(recipe, run)
        if chaos:
            with simulated_cluster(NODES) as cluster:
                train_under_chaos(cluster, path, overrides, run.store, recipe.training.steps, _say)
    _say("evaluating: k-NN of the untrained and the trained teacher on the held-out images")
    return _evaluated(recipe, run, dataset, None if data else pictured(*_PICTURE_PX))


def _ingest(source: Source, root: Store, dataset: str) -> None:
    for name, held_out in ((dataset, False), (f"{dataset}-holdout", True)):
        with show_ingest() as report:
            ingest(HashSplit(source, held_out), root, name, report=report)
        check_labels(dataset_store(root, name), load_manifest(root, name))


def _evaluated(recipe: PretrainRecipe, run: OpenedRun, dataset: str, pictures: Pixels | None) -> DemoResult:
    """Evaluate, compare with what was planned, and write the report; with the user's images where no pictures are."""
    evaluation = evaluate(_evaluation(recipe, run.root, dataset))
    shown = _whole_patches(evaluation.queries.images[:6] if pictures is None else pictures, recipe.model.patch_px)
    is_exact = _consumed_digest(run.store) == planned_digest(
        sample_source(recipe, run.root, run.manifests), recipe.training
    )
    rate = write_report(run.store, recipe, evaluation, shown, is_exact)
    stops = interruptions(read_metrics(run.store), read_events(run.store))
    return DemoResult(
        run=recipe.name,
        root=recipe.root,
        knn_untrained=evaluation.top1(UNTRAINED),
        knn_pixels=evaluation.top1(PIXELS),
        knn_trained=evaluation.top1(TRAINED),
        images_per_s=rate,
        interruptions=len(stops),
        steps_lost=sum(stop.steps_lost or 0 for stop in stops),
        is_exact=is_exact,
        images_seen=recipe.training.steps * recipe.training.global_batch,
        report=f"{run.store.url}/{REPORT_KEY}",
    )


def _consumed_digest(store: Store) -> str:
    """Of the ids of all images that the loss consumed, as the last checkpoint tells."""
    last = live_checkpoints(CommitLog(store).read())[-1]
    return CheckpointManifest.model_validate_json(store.get(last.manifest_key)).digest_of_ids


@dataclass(frozen=True, slots=True)
class HashSplit(Source):
    """One side of another source: the images held out, or the rest.

    A hash of their bytes decides: copies of one image are on the same side, whatever they are called.
    """

    whole: Source
    held_out: bool

    @property
    def description(self) -> str:
        """The whole, and which side of it."""
        return f"{self.whole.description} ({'held out' if self.held_out else 'to train on'})"

    def units(self) -> Iterator[Unit]:
        """Those of the whole; how many images of each are on this side is not known."""
        return (unit.model_copy(update={"items": None}) for unit in self.whole.units())

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """What is on this side; what is refused is on the one to train on."""
        for item in self.whole.read(unit, limits):
            held_out = isinstance(item, Item) and _is_held_out(item.data)
            if held_out == self.held_out:
                yield item


def check_both_sides(whole: Source) -> None:
    """Look until there is something on both sides: usually at a handful of images.

    Raises:
        NoImagesError: too few images for both.
    """
    seen: set[bool] = set()
    for unit in whole.units():
        for item in whole.read(unit):
            if isinstance(item, Item):
                seen.add(_is_held_out(item.data))
            if len(seen) == 2:
                return
    raise NoImagesError(
        f"{whole.description} holds too few images to train on some and hold out others",
        "Give a folder with at least a hundred images",
    )


def _is_held_out(data: bytes) -> bool:
    return hashlib.sha256(data).digest()[0] % _HOLDOUT_OF == 0


def _first_unfinished(root: Store) -> int:
    """An interrupted demo is resumed; a finished one is kept, and a new one gets the next number."""
    number = 1
    while has_ended(CommitLog(run_store(root, f"demo-{number}")).read()):
        number += 1
    return number


def _evaluation(recipe: PretrainRecipe, root: Store, dataset: str) -> EvaluateRecipe:
    bank = load_manifest(root, dataset).rows
    ks = [k for k in KnnConfig().neighbours if k <= bank] or [1]
    return EvaluateRecipe(
        kind="evaluate",
        name="knn",
        root=recipe.root,
        run=recipe.name,
        bank=dataset,
        queries=f"{dataset}-holdout",
        knn=KnnConfig(neighbours=ks),
    )


def _dataset_name(folder: Path) -> str:
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in folder.resolve().name.lower())
    # Two folders of one name are two datasets.
    return f"{kept.strip('-')[:40] or 'images'}-{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:8]}"


def _whole_patches(images: Pixels, patch_px: int) -> Pixels:
    height, width = (side // patch_px * patch_px for side in images.shape[1:3])
    return np.ascontiguousarray(images[:, :height, :width])


def _say(line: str) -> None:
    # On a terminal the live view's bar stands in this line, and is drawn anew in the next.
    wiped = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{wiped}{line}", file=sys.stderr, flush=True)  # noqa: T201 -- progress, beside the live view
