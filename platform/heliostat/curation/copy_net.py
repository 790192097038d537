"""The small network that finds copies: its architecture, and the image map that embeds with it.

Trained by self-supervision alone (``copy_training.py``) in the manner of SSCD (Pizzi et al. 2022): views of an image
attract each other, all other images repel, and KoLeo spreads them out. An image and its mirror image have the same
embedding by construction: both are embedded, and the sum is what counts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heliostat.curation.columns import vector_column
from heliostat.curation.image_maps import Compute
from heliostat.curation.kmeans import normalised
from heliostat.curation.vectors import VECTOR
from heliostat.data.decode import RgbImage
from heliostat.models.normalise import normalise

SIDE_PX = 112
_WIDTHS = (16, 32, 64, 128)
_EMBEDDING = 192
_BATCH = 64
_WEIGHTS = "copy_net.safetensors"
_VERSION = "1"
"""Of what happens to an image besides."""
THRESHOLD, BENCHMARK_THRESHOLD = 0.8, 0.75
"""Where copies of photographs are told from others that it was not trained on; towards benchmarks an image too many may
go. The weights: 4,000 steps on every second photograph of clothing-dataset-small (A. Grigorev, CC0)."""


class _Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        return torch.relu(x_BCHW + self.inner(x_BCHW))


class CopyNet(nn.Module):
    """Images (B, 3, 112, 112), normalised, to unit vectors (B, 192)."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            stages += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if before != 3:
                stages.append(_Residual(width))
            before = width
        self.stages = nn.Sequential(*stages)
        self.power = nn.Parameter(torch.tensor(3.0))
        """Of the generalised mean over places (GeM, Radenovic et al. 2018)."""
        self.head = nn.Linear(before, _EMBEDDING)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """See the class."""
        maps_BCHW = self.stages(images_BCHW).clamp(min=1e-6)
        pooled_BC = maps_BCHW.pow(self.power).mean(dim=(2, 3)).pow(1 / self.power)
        return nn.functional.normalize(self.head(pooled_BC), dim=-1)


@dataclass(frozen=True, slots=True)
class CopyEmbedding:
    """The image map of the network that is shipped."""

    gpus: float = 0.0
    name: str = "copy"
    short_side_px: int = SIDE_PX
    threshold: float = THRESHOLD
    benchmark_threshold: float = BENCHMARK_THRESHOLD

    @property
    def fingerprint(self) -> str:
        """See ``ImageMap``."""
        return _fingerprint()

    def open(self) -> Compute:
        """See ``ImageMap``."""
        device = "cuda" if self.gpus else "cpu"
        network = shipped_net().to(device)
        return lambda images: pa.table({VECTOR: vector_column(embed(network, images, device).astype(np.float16))})


def shipped_net() -> CopyNet:
    """With the weights of this release, in evaluation mode."""
    from safetensors.torch import load

    network = CopyNet()
    network.load_state_dict({name: tensor.float() for name, tensor in load(_weights()).items()}, strict=False)
    return network.eval()


def embed(network: CopyNet, images: Sequence[RgbImage], device: str = "cpu") -> NDArray[np.float32]:
    """Unit vectors (N, 192) of images of any size."""
    squares = np.stack([cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for image in images])
    found = []
    with torch.inference_mode():
        for first in range(0, len(squares), _BATCH):
            batch_BCHW = normalise(squares[first : first + _BATCH]).to(device)
            found.append((network(batch_BCHW) + network(batch_BCHW.flip(3))).float().cpu().numpy())
    return normalised(np.concatenate(found))


@cache
def _weights() -> bytes:
    return files("heliostat.curation").joinpath(_WEIGHTS).read_bytes()


@cache
def _fingerprint() -> str:
    return hashlib.sha256(_VERSION.encode() + _weights()).hexdigest()
