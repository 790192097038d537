"""Which embeddings there are, by the names that recipes give them."""

import importlib
from typing import cast

from heliostat.config.curate import EmbeddingConfig
from heliostat.curation.image_maps import ImageMap
from heliostat.errors import InvalidValueError
from heliostat.storage import Store

COPY, DCT_HASH = "copy", "dct-hash"


def open_embedding(config: EmbeddingConfig, root: Store) -> ImageMap:
    """The image map of an embedding; its column ``vector`` holds unit vectors.

    Args:
        config: Of the recipe.
        root: Where runs are.

    Raises:
        InvalidValueError: there is no such embedding.
        RunNotFoundError, NoCheckpointError, WeightsNotFoundError, UnreadableWeightsError: its weights are not there.
    """
    source = config.source or ""
    kind, _, name = source.partition(":")
    if source == COPY:
        from heliostat.curation.copy_net import CopyEmbedding

        return CopyEmbedding(config.gpus)
    if source == DCT_HASH:
        from heliostat.curation.dct_hash import DctHash

        return DctHash()
    if kind in ("run", "weights"):
        from heliostat.curation.backbone_embedding import of_run, of_weights

        return of_run(root, name, config) if kind == "run" else of_weights(name, config, root)
    return open_plugin(source)


def open_plugin(source: str) -> ImageMap:
    """What ``package.module:function`` gives.

    Raises:
        InvalidValueError: it is not there, or gives something else.
    """
    module, _, function = source.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidValueError(
            f"there is no embedding {source!r} ({type(error).__name__}: {error})",
            "Name copy, dct-hash, run:NAME, weights:PATH, or package.module:function",
        ) from error
    missing = [name for name in ("name", "fingerprint", "short_side_px", "gpus", "open") if not hasattr(found, name)]
    if missing:
        raise InvalidValueError(
            f"{source!r} gives {type(found).__name__}, which has no {missing[0]}",
            "Give an object as heliostat.curation.image_maps.ImageMap describes",
        )
    return cast(ImageMap, found)
