"""Backbones as graphs for other run times: ONNX and programs of ``torch.export``, for images of one size.

ONNX has no antialiased bicubic resize, so the position embedding is computed beforehand for the size that is asked for.
The input is ``images`` (B, C, H, W), normalised; the outputs are ``cls`` (B, D), ``patches`` (B, N, D) and,
of models that have them, ``registers`` (B, R, D), all after the final norm.

Legend: B images, C channels, H, W sides, N patches, R registers, D width.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from heliostat.models.backbones import Backbone
from heliostat.models.tokens import Tokens
from heliostat.models.vit import VisionTransformer

INPUT = "images"
OUTPUTS = ("cls", "patches", "registers")
_EXAMPLE_BATCH = 2
"""Of a graph with a dynamic batch: torch.export takes a batch of 1 for a constant."""
_ONE_FILE_BYTES = 1_500_000_000
"""An ONNX file is one protobuf message, of at most 2 GiB; the tensors of larger models go into a file beside it."""

Graph = Callable[[Tensor], Sequence[Tensor]]


class Flat(nn.Module):
    """A backbone whose outputs are a plain tuple, in the order of ``OUTPUTS``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.has_registers = _has_registers(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the outputs."""
        groups: list[Tokens] = self.backbone([images])
        tokens = groups[0]
        registers = (tokens.registers_BRD,) if self.has_registers else ()
        return (tokens.cls_BD, tokens.patches_BND, *registers)


def output_names(backbone: Backbone) -> tuple[str, ...]:
    """Of the outputs that this backbone has."""
    return OUTPUTS if _has_registers(backbone) else OUTPUTS[:2]


def _has_registers(backbone: Backbone) -> bool:
    return isinstance(backbone, VisionTransformer) and backbone.config.registers > 0


def trace(backbone: Backbone, px: int, dynamic_batch: bool) -> ExportedProgram:
    """The backbone as a program, for square images of ``px`` pixels, one at a time or any number."""
    count = _EXAMPLE_BATCH if dynamic_batch else 1
    example = torch.zeros(count, backbone.config.channels, px, px)
    shapes = {INPUT: {0: Dim("batch", min=1)}} if dynamic_batch else None
    with quiet(), torch.no_grad():
        # Strict: only then does ``len`` of a tensor stay a symbol, where it would make the batch a constant.
        return torch.export.export(Flat(backbone), (example,), dynamic_shapes=shapes, strict=True)


def write_program(program: ExportedProgram, path: Path) -> None:
    """A ``.pt2`` file."""
    with quiet():
        torch.export.save(program, path)


def load_program(path: Path) -> Graph:
    """What ``write_program`` wrote, as a function."""
    with quiet():
        module = torch.export.load(path).module()
    run: Graph = module.__call__
    return run


def write_onnx(program: ExportedProgram, names: Sequence[str], path: Path) -> None:
    """An ``.onnx`` file, and ``.onnx.data`` beside it for models of gigabytes."""
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    with quiet():
        converted = torch.onnx.export(
            program, input_names=[INPUT], output_names=list(names), dynamo=True, verbose=False, optimize=True
        )
        if converted is None:
            raise RuntimeError("torch.onnx.export gave no program")
        converted.save(path, external_data=size_bytes > _ONE_FILE_BYTES)


def load_onnx(path: Path, names: Sequence[str]) -> Graph:
    """An ONNX file as a function, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images_BCHW: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(list(names), {INPUT: images_BCHW.numpy()})]

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress, advice and warnings: their results are checked instead."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
