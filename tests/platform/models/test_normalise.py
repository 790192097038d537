import numpy as np
import torch

from heliostat.models.normalise import normalise


def test_normalise__equals_the_formula_per_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    found = normalise(pixels)
    assert found.shape == (3, 3, 5, 7)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        expected = (pixels[..., channel].astype(np.float64) / 255 - mean) / deviation
        np.testing.assert_allclose(found[:, channel].numpy(), expected, atol=1e-6)


def test_normalise__leaves_the_bytes_alone() -> None:
    pixels = np.full((1, 2, 2, 3), 200, np.uint8)
    normalise(pixels).zero_()
    assert (pixels == 200).all()
