"""Which embeddings there are, by the names that recipes give them."""

import re
from typing import cast

from heliostat.config.curate import EmbeddingConfig
from heliostat.config.plugins import open_plugin
from heliostat.curation.image_maps import ImageMap
from heliostat.errors import InvalidValueError
from heliostat.storage import Store

COPY, DCT_HASH = "copy", "dct-hash"


def open_embedding(config: EmbeddingConfig, root: Store, weights_key: str | None = None) -> ImageMap:
    """The image map of an embedding; its column ``vector`` holds unit vectors.

    Args:
        config: Of the recipe.
        root: Where runs are.
        weights_key: Of the backbone, as ``pinned_weights`` gave it when the curation was first started.

    Raises:
        InvalidValueError: there is no such embedding.
        RunNotFoundError, NoCheckpointError, WeightsNotFoundError, UnreadableWeightsError: its weights are not there.
    """
    source = config.source or ""
    kind, _, name = source.partition(":")
    if source == COPY:
        from heliostat.curation.copy_net import CopyEmbedding

        return CopyEmbedding(config.gpus)
    if config.gpus and kind not in (COPY, "run", "weights"):
        raise InvalidValueError(f"{source!r} does not take embedding.gpus from the recipe", "Set embedding.gpus to 0")
    if source == DCT_HASH:
        from heliostat.curation.dct_hash import DctHash

        return DctHash()
    if kind in ("run", "weights"):
        from heliostat.curation.backbone_embedding import BackboneEmbedding, of_run, of_weights

        if weights_key is not None:
            return BackboneEmbedding(root, weights_key, config.image_px, config.gpus)
        return of_run(root, name, config) if kind == "run" else of_weights(name, config, root)
    if not name:
        raise InvalidValueError(
            f"there is no embedding {source!r}",
            "Name copy, dct-hash, run:NAME, weights:PATH, or package.module:function",
        )
    return open_image_map(source)


def pinned_weights(config: EmbeddingConfig, root: Store) -> str | None:
    """Where the weights of an embedding by a backbone are, for good: a run may train on. None for the others.

    Raises:
        HeliostatError: as ``open_embedding``.
    """
    if (config.source or "").partition(":")[0] not in ("run", "weights"):
        return None
    from heliostat.curation.backbone_embedding import BackboneEmbedding

    found = open_embedding(config, root)
    return found.key if isinstance(found, BackboneEmbedding) else None


def open_image_map(source: str) -> ImageMap:
    """The image map of a plug-in.

    Raises:
        InvalidValueError: it is not there, or gives something else.
    """
    attributes = ("name", "fingerprint", "short_side_px", "gpus", "open")
    found = cast(ImageMap, open_plugin(source, attributes, "heliostat.curation.image_maps.ImageMap"))
    if not re.fullmatch(r"[a-z0-9._-]+", found.name):
        raise InvalidValueError(
            f"{source!r} is called {found.name!r}, which is to be part of a key",
            "Name it with small letters, digits, dots, dashes and underscores",
        )
    return found
