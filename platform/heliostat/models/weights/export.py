"""``export_backbone``: a backbone in a form that others read, checked before it is called done."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.errors import (
    ExportExistsError,
    ExportMismatchError,
    InvalidValueError,
    MissingExtraError,
    StoreFailedError,
    UnsupportedExportError,
)
from heliostat.models.backbones import Backbone
from heliostat.models.positions import at_grid
from heliostat.models.vit import VisionTransformer
from heliostat.models.weights import graphs
from heliostat.models.weights.backbone import Weights, build
from heliostat.models.weights.huggingface import to_huggingface, write_huggingface
from heliostat.models.weights.load import METADATA_KEY, load_backbone
from heliostat.models.weights.timm import to_timm, write_timm

Format = Literal["safetensors", "huggingface", "timm", "onnx", "torch-export"]
FILES: Mapping[Format, tuple[str, ...]] = {
    "safetensors": ("model.safetensors",),
    "huggingface": ("model.safetensors", "config.json", "preprocessor_config.json"),
    "timm": ("model.safetensors", "config.json"),
    "onnx": ("model.onnx", "model.onnx.data"),
    "torch-export": ("model.pt2",),
}
"""Every file that a format may write."""
TOLERANCE = 1e-4
"""Largest difference that an exported model may have from ours, over the largest output (and at least 1)."""

_PROBES = (1, 3)
"""Batches of random images with which a graph of any batch is checked; one of a fixed batch by the first."""
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that was written."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Export:
    """What an export wrote, and how far its outputs are from ours."""

    files: tuple[ExportedFile, ...]
    px: int
    """Side of the images for which the position embedding is stored."""
    max_difference: float
    """Over all outputs for random images, in units of the largest output (at least 1)."""


def export_backbone(
    backbone: Backbone,
    format: Format,
    folder: Path,
    *,
    px: int | None = None,
    dynamic_batch: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write a backbone into a folder, read it back, and compare both on random images.

    The files appear in the folder only after the check has passed.

    Args:
        backbone: In fp32 on the CPU.
        format: ``safetensors`` (ours: any model), ``huggingface`` (transformers), ``timm``, ``onnx``, ``torch-export``.
        folder: Where the files go; made if need be.
        px: Side of the images; ``None`` is the side that the position embedding is stored for. For another side the
            embedding is resized once and for all by the model's own rule, which graphs and other libraries do not know.
        dynamic_batch: Of graphs: any number of images at a time instead of one.
        overwrite: Replace files of an earlier export.

    Raises:
        ExportExistsError: the folder holds a file of this format already.
        UnsupportedExportError: the format cannot hold this model.
        ExportMismatchError: what was written computes something else.
        InvalidValueError: ``px`` is not a multiple of the patch.
        MissingExtraError: ONNX packages are not installed.
        StoreFailedError: the folder cannot be made or written.
        UnreadableWeightsError: the backbone holds NaN or infinity.
    """
    with _write_failures(folder):
        _check_request(format, folder, dynamic_batch, overwrite)
        fixed = at_size(backbone, px)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".heliostat-") as staging:
            difference = _WRITERS[format](fixed, Path(staging), dynamic_batch)
            if not difference <= TOLERANCE:
                raise ExportMismatchError(
                    f"the {format} export differs from the model by {difference:.1e}; at most {TOLERANCE:.0e} may be",
                    "Nothing was kept; export to another format and report this",
                )
            files = _move(Path(staging), folder, format)
    return Export(files, fixed.grid * fixed.config.patch_px, difference)


@contextmanager
def _write_failures(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise StoreFailedError(
            f"the folder {folder} cannot be written: {reason}", "Give a folder that can be made and has room"
        ) from error


def _move(staging: Path, folder: Path, format: Format) -> tuple[ExportedFile, ...]:
    """The files of the export to their place; those of an earlier one that it does not have go away."""
    files = tuple(_described(path) for path in sorted(staging.iterdir()))
    for stale in set(FILES[format]) - {file.name for file in files}:
        (folder / stale).unlink(missing_ok=True)
    for file in files:
        (staging / file.name).replace(folder / file.name)
    return files


def at_size(backbone: Backbone, px: int | None) -> Backbone:
    """A copy whose position embedding is stored for square images of ``px`` pixels; ``None`` leaves it as it is.

    Raises:
        InvalidValueError: ``px`` is not a multiple of the patch.
    """
    patch_px = backbone.config.patch_px
    side_px = backbone.grid * patch_px if px is None else px
    if side_px < patch_px or side_px % patch_px:
        raise InvalidValueError(
            f"px {side_px} is not a multiple of the model's patch of {patch_px} pixels",
            f"Give {max(1, round(side_px / patch_px)) * patch_px}",
        )
    grid = side_px // patch_px
    tensors = {name: tensor.detach().float().cpu() for name, tensor in backbone.state_dict().items()}
    if isinstance(backbone, VisionTransformer):
        tensors = at_grid(tensors, grid, backbone.config.resize)
    return build(Weights(backbone.config, grid, tensors, "the model"))


def _check_request(format: Format, folder: Path, dynamic_batch: bool, overwrite: bool) -> None:
    if dynamic_batch and format not in ("onnx", "torch-export"):
        raise InvalidValueError(
            f"a {format} export has no fixed batch", "Leave the dynamic batch out, or export to onnx or torch-export"
        )
    if folder.exists() and not folder.is_dir():
        raise ExportExistsError(f"{folder} is a file", "Give a folder")
    existing = [name for name in FILES[format] if (folder / name).exists()]
    if existing and not overwrite:
        raise ExportExistsError(
            f"{folder} already holds {', '.join(existing)}", "Give another folder, or overwrite with --force"
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" and find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"an export to onnx needs {' and '.join(missing)}, not installed here",
            'Run: pip install "heliostat[export]"',
        )


def _write_safetensors(backbone: Backbone, folder: Path, dynamic_batch: bool) -> float:
    config = backbone.config
    if isinstance(config, ModelConfig):
        config = config.model_copy(update={"position_resize": config.resize})
    described = {"schema_version": 1, "model": config.model_dump(mode="json"), "grid": backbone.grid}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(described)}
    path = folder / "model.safetensors"
    save_file(_contiguous(backbone.state_dict()), path, metadata)
    return _difference(backbone, graphs.Flat(load_backbone(path)))


def _write_huggingface(backbone: Backbone, folder: Path, dynamic_batch: bool) -> float:
    config = _transformer(backbone, "huggingface")
    write_huggingface(config, backbone.grid, folder)
    save_file(_contiguous(to_huggingface(backbone.state_dict())), folder / "model.safetensors", {"format": "pt"})
    return _difference(backbone, graphs.Flat(load_backbone(folder)))


def _write_timm(backbone: Backbone, folder: Path, dynamic_batch: bool) -> float:
    config = _transformer(backbone, "timm")
    write_timm(config, backbone.grid, folder)
    save_file(_contiguous(to_timm(backbone.state_dict())), folder / "model.safetensors", {"format": "pt"})
    return _difference(backbone, graphs.Flat(load_backbone(folder)))


def _transformer(backbone: Backbone, format: str) -> ModelConfig:
    if isinstance(backbone, VisionTransformer):
        return backbone.config
    raise UnsupportedExportError(
        f"a {format} export is of a vision transformer; this is convolutional ({backbone.config.arch})",
        "Export it as safetensors, whose names are those of the published ConvNeXt, onnx or torch-export",
    )


def _write_onnx(backbone: Backbone, folder: Path, dynamic_batch: bool) -> float:
    path, names = folder / "model.onnx", graphs.output_names(backbone)
    graphs.write_onnx(graphs.trace(backbone, _px(backbone), dynamic_batch), names, path)
    return _difference(backbone, graphs.load_onnx(path, names), _PROBES if dynamic_batch else _PROBES[:1])


def _write_program(backbone: Backbone, folder: Path, dynamic_batch: bool) -> float:
    path = folder / "model.pt2"
    graphs.write_program(graphs.trace(backbone, _px(backbone), dynamic_batch), path)
    return _difference(backbone, graphs.load_program(path), _PROBES if dynamic_batch else _PROBES[:1])


_WRITERS: Mapping[Format, Callable[[Backbone, Path, bool], float]] = {
    "safetensors": _write_safetensors,
    "huggingface": _write_huggingface,
    "timm": _write_timm,
    "onnx": _write_onnx,
    "torch-export": _write_program,
}


@torch.no_grad()
def _difference(backbone: Backbone, exported: graphs.Graph, batches: tuple[int, ...] = _PROBES[:1]) -> float:
    """Largest difference of any output, in units of the largest output (at least 1); infinite for another shape."""
    reference = graphs.Flat(backbone)
    worst = 0.0
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        px = _px(backbone)
        images = torch.randn(batch, backbone.config.channels, px, px, generator=generator)
        expected, found = reference(images), exported(images)
        if [each.shape for each in found] != [each.shape for each in expected]:
            return float("inf")
        for ours, theirs in zip(expected, found, strict=True):
            scale = max(1.0, float(ours.abs().max()))
            worst = max(worst, float((ours - theirs).abs().max()) / scale)
    return worst


def _px(backbone: Backbone) -> int:
    return backbone.grid * backbone.config.patch_px


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _described(path: Path) -> ExportedFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(partial(file.read, _READ_BYTES), b""):
            digest.update(chunk)
    return ExportedFile(path.name, path.stat().st_size, digest.hexdigest())
