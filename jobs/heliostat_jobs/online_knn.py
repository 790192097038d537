"""k-NN of a run's teacher while it trains: what the training loop, which knows no evaluation, is handed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from heliostat.config.evaluate import KnnConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.manifest import load_manifest
from heliostat.models.vit import VisionTransformer
from heliostat.storage import Store
from heliostat_evaluation.backbones import ClassToken
from heliostat_evaluation.features import extract_features
from heliostat_evaluation.knn import knn_accuracy
from heliostat_jobs.evaluate import LabelledSet, load_labelled, with_classes_of

METRIC = "knn_top1"


@dataclass(frozen=True, slots=True)
class OnlineKnn:
    """The probe of a run; see ``heliostat.training.attempt.Probe``."""

    root: Store
    bank: str
    queries: str
    px: int
    neighbours: int

    def __call__(self, backbone: VisionTransformer) -> Mapping[str, float]:
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
        return {METRIC: accuracies[self.neighbours].top1}


def online_knn(recipe: PretrainRecipe, root: Store) -> OnlineKnn | None:
    """The probe that a recipe asks for, if it does.

    Raises:
        DatasetNotFoundError: a dataset is not there; better now than after the first thousand steps.
    """
    knn = recipe.observe.knn
    if not knn.every_steps or knn.bank is None or knn.queries is None:
        return None
    for name in (knn.bank, knn.queries):
        load_manifest(root, name)
    return OnlineKnn(root, knn.bank, knn.queries, recipe.augmentation.global_px, knn.neighbours)


@lru_cache(maxsize=1)
def _labelled(root: Store, bank: str, queries: str, px: int) -> tuple[LabelledSet, LabelledSet]:
    voters = load_labelled(root, bank, px)
    return voters, with_classes_of(voters, load_labelled(root, queries, px))
