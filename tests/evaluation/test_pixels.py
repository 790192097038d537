import torch

from heliostat_evaluation.pixels import normalised_pixels, raw_pixels

IMAGES = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def test_raw_pixels__are_the_pixels() -> None:
    assert torch.equal(raw_pixels(IMAGES).reshape(IMAGES.shape), IMAGES)


def test_normalised_pixels__ignore_brightness_and_contrast() -> None:
    torch.testing.assert_close(normalised_pixels(0.3 * IMAGES + 0.5), normalised_pixels(IMAGES), atol=1e-4, rtol=1e-4)


def test_normalised_pixels__cosine_is_the_correlation() -> None:
    rows = normalised_pixels(IMAGES)
    cosine = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    torch.testing.assert_close(cosine, torch.corrcoef(IMAGES.flatten(1))[0, 1])


def test_normalised_pixels__an_image_of_one_colour_stays_finite() -> None:
    rows = normalised_pixels(torch.full((1, 3, 2, 2), 0.7))
    torch.testing.assert_close(rows, torch.zeros(1, 12), atol=0.01, rtol=0)
