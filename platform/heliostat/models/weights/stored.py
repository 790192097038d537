"""A copy of a backbone's weights under a root, for good: workers find it wherever they are, and its source may change.

``weights/<sha256>.safetensors``, named by its bytes.
"""

import hashlib
import json

from safetensors.torch import load, save

from heliostat.config.network import BACKBONES, BackboneConfig
from heliostat.errors import CorruptResultError, ObjectNotFoundError
from heliostat.models.weights.backbone import Weights
from heliostat.storage import Store

_METADATA_KEY = "heliostat"
_FOLDER, _END = "weights/", ".safetensors"


def store_weights(root: Store, weights: Weights) -> str:
    """Keep weights under a root; their key."""
    described = {"config": weights.config.model_dump(mode="json"), "grid": weights.grid}
    metadata = {_METADATA_KEY: json.dumps(described, sort_keys=True)}  # of several keys the order would change
    tensors = {name: tensor.contiguous() for name, tensor in sorted(weights.tensors.items())}
    data = save(tensors, metadata)
    key = f"{_FOLDER}{hashlib.sha256(data).hexdigest()}{_END}"
    if not root.exists(key):
        root.put(key, data)
    return key


def load_weights(root: Store, key: str) -> Weights:
    """What ``store_weights`` has kept.

    Raises:
        CorruptResultError: it is gone, or the bytes are not those that were kept.
    """
    try:
        data = root.get(key)
    except ObjectNotFoundError as error:
        raise _corrupt(root, key, "is gone") from error
    if hashlib.sha256(data).hexdigest() != key.removeprefix(_FOLDER).removesuffix(_END):
        raise _corrupt(root, key, "does not have the hash in its name")
    config, grid = _described(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Weights(config, grid, load(data), f"{root.url}/{key}")


def describe_weights(root: Store, key: str) -> tuple[BackboneConfig, int]:
    """Architecture and grid of what ``store_weights`` has kept, without reading it; its hash is not looked at.

    Raises:
        CorruptResultError: it is gone.
    """
    try:
        size = int.from_bytes(root.get(key, 0, 8), "little")
        return _described(root.get(key, 8, 8 + size))
    except ObjectNotFoundError as error:
        raise _corrupt(root, key, "is gone") from error


def _described(header: bytes) -> tuple[BackboneConfig, int]:
    described = json.loads(json.loads(header)["__metadata__"][_METADATA_KEY])
    return BACKBONES.validate_python(described["config"]), described["grid"]


def _corrupt(root: Store, key: str, what: str) -> CorruptResultError:
    return CorruptResultError(f"{key} under {root.url} {what}", "Put it back, or begin again under another name")
