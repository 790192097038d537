"""``kind: evaluate``: k-NN of a run's teacher, beside the untrained network and raw pixels."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heliostat.config.distill import recipe_of_network
from heliostat.config.evaluate import EvaluateRecipe, KnnConfig
from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.errors import TooFewSamplesError
from heliostat.models.backbones import Backbone
from heliostat.models.normalise import normalise
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store, run_store
from heliostat_evaluation.backbones import ClassToken, trained_teacher, untrained_backbone
from heliostat_evaluation.datasets import LabelledBatch, Pixels, labelled_batches
from heliostat_evaluation.features import Features, extract_features
from heliostat_evaluation.knn import Accuracy, knn_accuracy, nearest
from heliostat_evaluation.pixels import normalised_pixels
from heliostat_jobs.runs import load_run

UNTRAINED, PIXELS, TRAINED = "untrained", "raw pixels", "trained"
"""What is compared."""


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """A labelled dataset in memory, with the classes of the bank."""

    images: Pixels
    """(N, P, P, 3)."""
    labels: list[int]
    ids: list[str]
    classes: tuple[str, ...]

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, list[int]]]:
        """Normalised images (B, 3, P, P) with their labels."""
        for start in range(0, len(self.labels), size):
            yield normalise(self.images[start : start + size]), self.labels[start : start + size]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    run: str
    step: int
    """Of the teacher that was judged."""
    accuracies: dict[str, dict[int, Accuracy]]
    """By feature, by k."""
    bank: LabelledSet
    queries: LabelledSet
    neighbours: Tensor
    """Rows of the bank nearest to each query by the trained features, (Q, 10)."""
    backbone: Backbone

    def top1(self, feature: str) -> float:
        """Accuracy at the smallest k."""
        by_k = self.accuracies[feature]
        return by_k[min(by_k)].top1

    def to_json(self) -> dict[str, object]:
        """The numbers alone."""
        return {
            "run": self.run,
            "step": self.step,
            "knn": {
                feature: {
                    str(k): {"top1": accuracy.top1, "interval_95": list(accuracy.interval)}
                    for k, accuracy in by_k.items()
                }
                for feature, by_k in self.accuracies.items()
            },
            "bank_images": len(self.bank.labels),
            "query_images": len(self.queries.labels),
        }

    def summary(self) -> list[str]:
        """The accuracies, line by line."""
        return [
            f"{feature:<12} " + "  ".join(f"k={k}: {accuracy.top1:.1%}" for k, accuracy in by_k.items())
            for feature, by_k in self.accuracies.items()
        ]


def evaluate(recipe: EvaluateRecipe) -> Evaluation:
    """Evaluate the newest committed teacher of a run; results go to ``runs/<run>/reports/<name>.json``.

    Raises:
        RunNotFoundError, DatasetNotFoundError, NoCheckpointError: something named is not there.
        UnlabelledDatasetError: an image without a label.
        TooFewSamplesError: the bank holds fewer images than the largest k.
    """
    root = open_store(recipe.root)
    run = load_run(root, recipe.run)
    network, px = recipe_of_network(run, recipe.student), run.augmentation.global_px
    bank = load_labelled(root, recipe.bank, px)
    queries = with_classes_of(bank, load_labelled(root, recipe.queries, px))
    teacher = trained_teacher(run_store(root, recipe.run), run, recipe.step, recipe.student)
    features: dict[str, Callable[[Tensor], Tensor]] = {
        UNTRAINED: ClassToken(untrained_backbone(network)),
        PIXELS: normalised_pixels,
        TRAINED: ClassToken(teacher.backbone),
    }
    accuracies: dict[str, dict[int, Accuracy]] = {}
    neighbours = torch.empty(0)
    for name, function in features.items():
        voters, asked = _features(function, bank), _features(function, queries)
        accuracies[name] = _knn(voters, asked, recipe.knn)
        if name == TRAINED:
            _, neighbours = nearest(voters.features_ND, asked.features_ND, min(10, len(bank.labels)))
    result = Evaluation(recipe.run, teacher.step, accuracies, bank, queries, neighbours, teacher.backbone)
    run_store(root, recipe.run).put(f"reports/{recipe.name}.json", json.dumps(result.to_json(), indent=1).encode())
    return result


def load_labelled(root: Store, name: str, px: int) -> LabelledSet:
    """A whole labelled dataset, cropped to squares of ``px``."""
    manifest: DatasetManifest = load_manifest(root, name)
    batches: list[LabelledBatch] = list(labelled_batches(dataset_store(root, name), manifest, px))
    if not batches:
        raise TooFewSamplesError(f"dataset {name!r} holds no image", "Ingest labelled images into it")
    return LabelledSet(
        np.concatenate([batch.images for batch in batches]),
        [label for batch in batches for label in batch.labels],
        [image_id for batch in batches for image_id in batch.ids],
        manifest.labels,
    )


def with_classes_of(bank: LabelledSet, queries: LabelledSet) -> LabelledSet:
    """The queries with the bank's numbers of classes; a class that the bank lacks gets a number of its own."""
    classes = (*bank.classes, *(name for name in queries.classes if name not in bank.classes))
    number = {name: index for index, name in enumerate(classes)}
    labels = [number[queries.classes[label]] for label in queries.labels]
    return LabelledSet(queries.images, labels, queries.ids, classes)


def _features(function: Callable[[Tensor], Tensor], images: LabelledSet) -> Features:
    return extract_features(function, images.batches(), ids=images.ids)


def _knn(bank: Features, queries: Features, config: KnnConfig) -> dict[int, Accuracy]:
    ks: Sequence[int] = config.neighbours
    return knn_accuracy(
        bank.features_ND, bank.labels_N, queries.features_ND, queries.labels_N, ks=ks, temperature=config.temperature
    )
