"""k-NN of a run's teacher while it trains: what the training loop, which knows no evaluation, is handed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from heliostat.config.evaluate import KnnConfig
from heliostat.config.training import TrainingRecipe
from heliostat.data.manifest import load_manifest
from heliostat.errors import InvalidValueError, TooFewSamplesError, UnlabelledDatasetError
from heliostat.models.backbones import Backbone
from heliostat.observe.metrics import KNN
from heliostat.storage import Store
from heliostat_evaluation.backbones import ClassToken
from heliostat_evaluation.features import extract_features
from heliostat_evaluation.knn import knn_accuracy
from heliostat_jobs.evaluate import LabelledSet, load_labelled, with_classes_of

_MOST_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True)
class OnlineKnn:
    """The probe of a run; see ``heliostat.training.attempt.Probe``."""

    root: Store
    bank: str
    queries: str
    px: int
    neighbours: int

    def __call__(self, backbone: Backbone) -> Mapping[str, float]:
        """Top-1 accuracy of the class token, as ``knn_top1``."""
        bank, queries = _labelled(self.root, self.bank, self.queries, self.px)
        device = next(backbone.parameters()).device
        token = ClassToken(backbone)
        voters, asked = (
            extract_features(token, each.batches(), ids=each.ids, device=device) for each in (bank, queries)
        )
        accuracies = knn_accuracy(
            voters.features_ND,
            voters.labels_N,
            asked.features_ND,
            asked.labels_N,
            ks=[self.neighbours],
            temperature=KnnConfig.model_validate({}).temperature,
        )
        return {KNN: accuracies[self.neighbours].top1}


def online_knn(recipe: TrainingRecipe, root: Store) -> OnlineKnn | None:
    """The probe that a recipe asks for, if it does.

    Raises: better now than after the first thousand steps
        DatasetNotFoundError: a dataset is not there.
        UnlabelledDatasetError: it has no labels.
        TooFewSamplesError: the bank holds fewer images than vote.
        InvalidValueError: the images would not fit beside the training.
    """
    knn, px = recipe.observe.knn, recipe.augmentation.global_px
    if not knn.every_steps or knn.bank is None or knn.queries is None:
        return None
    bank, queries = load_manifest(root, knn.bank), load_manifest(root, knn.queries)
    for manifest in (bank, queries):
        if not manifest.labels:
            raise UnlabelledDatasetError(
                f"dataset {manifest.name!r}, which observe.knn names, has no labels", "Name a labelled dataset"
            )
    if bank.rows < knn.neighbours:
        raise TooFewSamplesError(
            f"observe.knn.neighbours is {knn.neighbours}, but dataset {bank.name!r} has {bank.rows} images",
            "Lower observe.knn.neighbours",
        )
    size_bytes = 3 * px**2 * (bank.rows + queries.rows)
    if size_bytes > _MOST_BYTES:
        raise InvalidValueError(
            f"the images of observe.knn take {size_bytes / 2**30:.1f} GiB of the first worker's memory at {px} px, the "
            f"limit is {_MOST_BYTES / 2**30:.0f} GiB",
            "Name smaller datasets; heliostat run with kind: evaluate judges by large ones",
        )
    return OnlineKnn(root, knn.bank, knn.queries, px, knn.neighbours)


@lru_cache(maxsize=1)
def _labelled(root: Store, bank: str, queries: str, px: int) -> tuple[LabelledSet, LabelledSet]:
    voters = load_labelled(root, bank, px)
    return voters, with_classes_of(voters, load_labelled(root, queries, px))
