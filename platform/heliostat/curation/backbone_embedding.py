"""Embeddings by a backbone: of a run of ours, or from any weights that can be loaded.

The weights are copied to ``weights/<hash>.safetensors`` under the root, so that workers find them wherever they are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.config.curate import EmbeddingConfig
from heliostat.curation.columns import vector_column
from heliostat.curation.image_maps import Compute
from heliostat.curation.kmeans import normalised
from heliostat.curation.vectors import VECTOR
from heliostat.data.decode import RgbImage
from heliostat.storage import Store
from heliostat.storage.layout import run_store

_BATCH = 64
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class BackboneEmbedding:
    """The image map of a backbone's class token.

    Attributes:
        store: Holds the weights.
        key: Of the weights.
        image_px: Side of the square that the backbone sees: the shorter side is resized to it, the rest cut off.
        gpus: Of each process.
    """

    store: Store
    key: str
    image_px: int
    gpus: float
    name: str = "backbone"

    @property
    def fingerprint(self) -> str:
        """See ``ImageMap``."""
        return hashlib.sha256(f"{_VERSION}:{self.key}:{self.image_px}".encode()).hexdigest()

    @property
    def short_side_px(self) -> int:
        """See ``ImageMap``."""
        return self.image_px

    def open(self) -> Compute:
        """See ``ImageMap``."""
        import torch

        from heliostat.models.normalise import normalise
        from heliostat.models.weights.backbone import build
        from heliostat.models.weights.stored import load_weights

        device = "cuda" if self.gpus else "cpu"
        backbone = build(load_weights(self.store, self.key)).to(device)

        def compute(images: Sequence[RgbImage]) -> pa.Table:
            squares = np.stack([square(image, self.image_px) for image in images])
            found = []
            with torch.inference_mode():
                for first in range(0, len(squares), _BATCH):
                    (tokens,) = backbone([normalise(squares[first : first + _BATCH]).to(device)])
                    found.append(tokens.cls_BD.float().cpu().numpy())
            return pa.table({VECTOR: vector_column(normalised(np.concatenate(found)).astype(np.float16))})

        return compute


def of_run(root: Store, name: str, config: EmbeddingConfig) -> BackboneEmbedding:
    """The teacher of a run's newest checkpoint.

    Raises:
        WeightsNotFoundError, NoCheckpointError: there is no such run, or it has no checkpoint.
    """
    return of_weights(run_store(root, name).url, config, root)


def of_weights(name_or_path: str, config: EmbeddingConfig, root: Store) -> BackboneEmbedding:
    """Any weights that ``heliostat.load_backbone`` takes.

    Raises:
        InvalidValueError: images of this size cannot be cut into the backbone's patches.
        HeliostatError: as ``load_backbone``.
    """
    from heliostat.errors import InvalidValueError
    from heliostat.models.weights.load import read_weights
    from heliostat.models.weights.normalisation import refuse_other_normalisation
    from heliostat.models.weights.stored import store_weights

    weights = read_weights(name_or_path, None, None)
    refuse_other_normalisation(weights)
    patch = weights.config.patch_px
    if config.image_px % patch:
        raise InvalidValueError(
            f"embedding.image_px {config.image_px} is no multiple of the backbone's patch of {patch} px",
            f"Give {config.image_px // patch * patch or patch}",
        )
    return BackboneEmbedding(root, store_weights(root, weights), config.image_px, config.gpus)


def square(image: RgbImage, side_px: int) -> npt.NDArray[np.uint8]:
    """The middle of an image, its shorter side resized, (side_px, side_px, 3)."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = np.ascontiguousarray(image[top : top + short, left : left + short])
    interpolation = cv2.INTER_AREA if short > side_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(middle, (side_px, side_px), interpolation=interpolation), np.uint8)
