"""``load_backbone``: a backbone from wherever it is."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from heliostat.config.network import BACKBONES
from heliostat.errors import (
    ConfigError,
    IncompatibleCheckpointError,
    InvalidValueError,
    UnreadableWeightsError,
    WeightsNotFoundError,
)
from heliostat.models.backbones import Backbone
from heliostat.models.weights import huggingface, timm
from heliostat.models.weights.architecture import infer
from heliostat.models.weights.backbone import Weights, build, check_floating
from heliostat.models.weights.channels import inflate
from heliostat.models.weights.download import is_official_name, official_file
from heliostat.models.weights.files import FileKind, TensorFile, file_kind, read_safetensors
from heliostat.models.weights.foreign import read_pickle
from heliostat.models.weights.normalisation import other_normalisation
from heliostat.models.weights.official import backbone_names
from heliostat.models.weights.runs import read_run
from heliostat.storage import open_store
from heliostat.storage.layout import LOCK_KEY

METADATA_KEY = "heliostat"
"""In the metadata of our own exports: architecture and grid as JSON."""
_STEM = "downsample_layers.0.0.weight"
_PROJECTIONS = ("patch_embed.proj.weight", _STEM)
"""What takes colours: of a vision transformer, of a convolutional network."""
_SAFETENSORS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def load_backbone(
    name_or_path: str | Path,
    *,
    channels: int | None = None,
    heads: int | None = None,
    step: int | None = None,
    student: str | None = None,
) -> Backbone:
    """A trained backbone in fp32, in evaluation mode; the architecture is read from what is found.

    It takes a list of batches, each of images of one size, and gives the tokens of each::

        model = heliostat.load_backbone("dinov2_vits14")
        images = torch.rand(2, 3, 224, 224)  # RGB in [0, 1]; sides are multiples of model.config.patch_px
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)  # both of ImageNet
        with torch.inference_mode():
            (tokens,) = model([(images - mean) / deviation])
        tokens.cls_BD  # (2, 384): one vector for each image
        tokens.patches_BND  # (2, 256, 384): one for each patch, row by row

    Args:
        name_or_path: One of

            - a released model: ``dinov2_vits14``, ``dinov2_vitb14_reg4`` … (downloaded once);
            - a ``.pth`` or ``.bin`` file of DINOv2's own code: released, training checkpoint or exported teacher. It is
              read in another process and cannot run anything;
            - a ``.safetensors`` file: one of our exports, or tensors under the names of DINOv2, transformers or timm;
            - a folder of one of our exports as safetensors;
            - a folder of transformers or timm (``config.json`` beside ``model.safetensors``, also in several parts, or
              ``pytorch_model.bin``);
            - a run of ours, ``<root>/runs/<name>``, in a folder or on S3: its teacher.
        channels: Channels of the images; ``None`` as it was trained. See ``channels.inflate``.
        heads: Attention heads, where a bare file of tensors does not say it and they are not 64 wide.
        step: Of a run's checkpoint; ``None`` is the newest.
        student: Of a distillation; ``None`` is its only one.

    Raises:
        WeightsNotFoundError: nothing is there.
        InvalidValueError: ``channels`` or ``heads`` below 1, a step or student of something that is no run, or no such
            student.
        UnreadableWeightsError: the file is broken, hostile or of no known kind, or holds integers, NaN or infinity.
        IncompatibleCheckpointError: it is not a DINOv2 backbone; says which tensors differ.
        NoCheckpointError: the run has no checkpoint, or none of this step.
        StorageError: the store or the server does not cooperate.
    """
    _check_count("channels", channels)
    _check_count("heads", heads)
    weights = read_weights(str(name_or_path), heads, step, student)
    return build(weights if channels is None else with_channels(weights, channels))


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InvalidValueError(f"{name} {value} is less than 1", f"Give a number from 1, or leave {name} out")


def with_channels(weights: Weights, channels: int) -> Weights:
    """The same backbone for images with another number of channels.

    Raises:
        UnreadableWeightsError: tensors hold integers.
    """
    check_floating(weights)  # before the cast below, which would hide them
    tensors = dict(weights.tensors)
    for name in _PROJECTIONS:
        if name in tensors and tensors[name].dim() == 4:  # otherwise ``build`` reports it
            tensors[name] = inflate(tensors[name].float(), channels)
    config = BACKBONES.validate_python({**weights.config.model_dump(), "channels": channels})
    return replace(weights, config=config, tensors=tensors)


def read_weights(
    name_or_path: str, heads: int | None = None, step: int | None = None, student: str | None = None
) -> Weights:
    """What ``load_backbone`` builds its model of; same arguments and errors."""
    path = Path(name_or_path).expanduser()
    if name_or_path.startswith("s3://") or (path / LOCK_KEY).is_file():
        return read_run(open_store(name_or_path), step, student)[0]
    for what, asked in (("step", step), ("student", student)):
        if asked is not None:
            raise InvalidValueError(f"{what} {asked} was asked for, but {name_or_path} is no run", f"Leave {what} out")
    if path.is_dir():
        return _read_folder(path, heads)
    if path.exists():
        return _read_file(path, heads)
    if is_official_name(name_or_path):
        return _read_file(official_file(name_or_path), heads)
    raise WeightsNotFoundError(
        f"there is nothing at {name_or_path!r}, and it is no released model",
        "Give a file or folder of weights, a run as ROOT/runs/NAME or s3://…, or a name such as dinov2_vits14",
    )


def _read_file(path: Path, heads: int | None) -> Weights:
    if file_kind(path) is FileKind.PICKLE:
        return translate(read_pickle(path), str(path), heads)
    content = read_safetensors(path)
    if METADATA_KEY in content.metadata:
        return _read_own(content, str(path))
    return translate(content.tensors, str(path), heads)


def translate(tensors: Mapping[str, Tensor], origin: str, heads: int | None = None) -> Weights:
    """Tensors in any known dialect as a backbone.

    Raises:
        IncompatibleCheckpointError: there is no backbone, or sizes cannot be read off.
    """
    if any(name.endswith(_STEM) for name in tensors):
        raise IncompatibleCheckpointError(
            f"{origin} holds a convolutional network, and does not say on which grid its map is compared",
            "Use a file that heliostat checkpoint export wrote as safetensors",
        )
    if huggingface.is_huggingface(tensors):
        released = huggingface.from_huggingface(tensors)
        if "mask_token" not in released:  # ``use_mask_token: false``
            released = timm.from_timm(released)
        resize = huggingface.resize_of("register_tokens" in released)
    else:
        released = {name: tensors[source] for source, name in backbone_names(tensors, origin).items()}
        resize = "auto"
        if timm.is_timm(released):
            released, resize = timm.from_timm(released), timm.RESIZE
    config, grid = infer(released, origin, heads, resize)
    return Weights(config, grid, released, origin)


def _read_own(content: TensorFile, origin: str) -> Weights:
    try:
        described = json.loads(content.metadata[METADATA_KEY])
        config = BACKBONES.validate_python(described["model"])
        grid = int(described["grid"])
        if described["schema_version"] != 1 or grid < 1:
            raise ValueError(described["schema_version"])
    except (ValueError, KeyError, TypeError, ValidationError, ConfigError) as error:
        raise UnreadableWeightsError(
            f"{origin} says in its metadata nothing that this version knows ({type(error).__name__})",
            "Use the version that wrote it",
        ) from error
    return Weights(config, grid, content.tensors, origin)


def _read_folder(folder: Path, heads: int | None) -> Weights:
    file = folder / _SAFETENSORS
    if file.is_file():
        content = read_safetensors(file)
        if METADATA_KEY in content.metadata:  # says all itself; a config.json is left from an export before it
            return _read_own(content, str(file))
    config = _json(folder / "config.json")
    if "architecture" in config:
        heads = heads or timm.heads_of(config)
        otherwise = other_normalisation(config.get("pretrained_cfg", config), "mean", "std")
    else:
        heads = huggingface.heads_of(config, str(folder / "config.json"))
        file = folder / huggingface.PREPROCESSOR
        otherwise = other_normalisation(_json(file), "image_mean", "image_std") if file.exists() else ()
    found = translate(_folder_tensors(folder), str(folder), heads)
    return replace(found, other_normalisation=otherwise)


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        _SAFETENSORS: lambda path: read_safetensors(path).tensors,
        _INDEX: _read_parts,
        _PICKLE: read_pickle,
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            return read(folder / name)
    raise WeightsNotFoundError(f"{folder} holds none of {', '.join(readers)}", "Give a folder with weights")


def _read_parts(index: Path) -> dict[str, Tensor]:
    parts = _json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise UnreadableWeightsError(f"{index} names no parts", "Get the folder again")
    names = set(parts.values())
    strays = [name for name in names if Path(name).name != name]
    if strays:
        raise UnreadableWeightsError(f"{index} names a part {strays[0]!r} outside of its folder", "Get it elsewhere")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        tensors |= read_safetensors(index.parent / name).tensors
    return tensors


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise WeightsNotFoundError(
            f"{path.parent} is neither a run nor a folder of weights: it has neither {LOCK_KEY} nor {path.name}",
            "Give a run, a folder of transformers or timm, or a file of weights",
        ) from error
    except (OSError, ValueError) as error:
        raise UnreadableWeightsError(f"{path} is no JSON ({type(error).__name__})", "Get the folder again") from error
    if not isinstance(value, dict):
        raise UnreadableWeightsError(f"{path} is a {type(value).__name__}, not an object", "Get the folder again")
    return value
