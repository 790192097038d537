"""The images that bench_ingest.py measures with."""

import os
import random
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_SEED = 0


def photographs(folder: Path, wanted: int) -> tuple[list[Path], str]:
    """Up to ``wanted`` files of photographs, and what they are; generated ones are written to ``folder``."""
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    found = sorted((Path(data) / "clothing_cc0").rglob("*.jpg")) if data else []
    if found:
        random.Random(_SEED).shuffle(found)
        return found[:wanted], "clothing_cc0"
    paths = [folder / f"{index:05}.jpg" for index in range(wanted)]
    for index, path in enumerate(paths):
        path.write_bytes(generated_photograph(index))
    return paths, "generated images: HELIOSTAT_TEST_DATA does not lead to clothing_cc0"


def generated_photograph(index: int, width: int = 533, height: int = 400) -> bytes:
    """A JPEG file whose detail falls off with its fineness, as that of photographs does."""
    rng = np.random.default_rng(index)
    pixels = np.zeros((height, width, 3), np.float32)
    for level in range(1, 8):
        noise = rng.standard_normal((2**level * 3 // 4 + 1, 2**level, 3)).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 90 / level**1.5
    buffer = BytesIO()
    Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
