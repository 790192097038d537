"""Which embeddings there are, by the names that recipes give them."""

from typing import cast

from heliostat.config.curate import EmbeddingConfig
from heliostat.config.plugins import open_plugin
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
    if not name:
        raise InvalidValueError(
            f"there is no embedding {source!r}",
            "Name copy, dct-hash, run:NAME, weights:PATH, or package.module:function",
        )
    return open_image_map(source)


def open_image_map(source: str) -> ImageMap:
    """The image map of a plug-in.

    Raises:
        InvalidValueError: it is not there, or gives something else.
    """
    attributes = ("name", "fingerprint", "short_side_px", "gpus", "open")
    return cast(ImageMap, open_plugin(source, attributes, "heliostat.curation.image_maps.ImageMap"))
