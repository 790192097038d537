"""Training of the copy-detection net without labels: contrast between views, spread by KoLeo (SSCD, Pizzi et al. 2022).

``python -m heliostat.curation.copy_training FOLDER WEIGHTS`` trains on a folder of images and writes the weights.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from heliostat.curation.copies import training_view
from heliostat.curation.copy_net import SIDE_PX, CopyNet
from heliostat.data.decode import RgbImage, decode_rgb
from heliostat.data.draws import Draws, permutation
from heliostat.models.normalise import normalise
from heliostat.objectives.koleo import koleo_loss
from heliostat.storage.in_flight import map_in_flight

_SHORT_SIDE_PX = 160


@dataclass(frozen=True, slots=True)
class CopyTraining:
    """How the net is trained."""

    steps: int = 4000
    batch: int = 96
    """Images; each gives two views."""
    peak_rate: float = 1e-3
    weight_decay: float = 1e-4
    temperature: float = 0.06
    koleo_weight: float = 0.5
    seed: int = 0


def train_copy_net(
    images: Sequence[RgbImage], how: CopyTraining, report: Callable[[int, float], None] = lambda step, loss: None
) -> CopyNet:
    """A net for these images; they are held in memory.

    Args:
        images: At least as many as a batch.
        how: Everything random follows from its seed.
        report: Told of steps and their loss.
    """
    torch.manual_seed(how.seed)
    network = CopyNet()
    torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), how.peak_rate, weight_decay=how.weight_decay)
    for step, (first_BCHW, second_BCHW) in enumerate(_batches(images, how)):
        for group in optimizer.param_groups:
            group["lr"] = how.peak_rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        views_BCHW = torch.cat([first_BCHW, second_BCHW]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            views_BD = network(views_BCHW)
        views_BD = views_BD.float()
        loss = contrast(views_BD, how.temperature)
        for half_BD in views_BD.chunk(2):
            loss = loss + 0.5 * how.koleo_weight * koleo_loss(half_BD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step, float(loss.detach()))
    network.eval()
    return network


def contrast(views_BD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the other view of each image among all views; the first half are first views."""
    similarity_BB = views_BD @ views_BD.T / temperature
    similarity_BB.fill_diagonal_(-math.inf)
    half = len(views_BD) // 2
    others_B = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
    return torch.nn.functional.cross_entropy(similarity_BB, others_B)


def _batches(images: Sequence[RgbImage], how: CopyTraining) -> Iterator[tuple[Tensor, Tensor]]:
    small = [_small(image) for image in images]
    per_epoch = len(images) // how.batch

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = permutation(len(images), how.seed, "copy.order", epoch)
        chosen = order[place * how.batch : (place + 1) * how.batch].tolist()
        first, second = (
            np.stack(
                [
                    training_view(small[row], SIDE_PX, Draws(how.seed, "copy.view", step, number, view))
                    for number, row in enumerate(chosen)
                ]
            )
            for view in range(2)
        )
        return normalise(first), normalise(second)

    return map_in_flight(batch, range(how.steps), threads=2)


def _small(image: RgbImage) -> RgbImage:
    """As large as views need it: a strong crop of it still has a view's pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, _SHORT_SIDE_PX / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def main() -> None:
    """Train on a folder."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--steps", type=int, default=CopyTraining().steps)
    chosen = parser.parse_args()
    paths = sorted(path for path in chosen.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = [_small(decode_rgb(path.read_bytes())) for path in paths[:: chosen.every]]

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            sys.stderr.write(f"step {step}/{chosen.steps} loss {loss:.3f}\n")

    network = train_copy_net(images, CopyTraining(steps=chosen.steps), report)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, chosen.weights)


if __name__ == "__main__":
    main()
