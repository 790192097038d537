from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.worlds import encoded_images

from heliostat.config.training import AugmentationConfig
from heliostat.data.crop_plan import plan_crops
from heliostat.data.crops import largest_shrink, slot_crops
from heliostat.data.decode import decode_rgb
from heliostat.data.photometric import apply_photometric
from heliostat.errors import RejectedImageError

CONFIG = AugmentationConfig(global_px=16, local_px=8, local_count=3)
PLAIN = CONFIG.model_copy(update={"jitter": 0.0, "grey": 0.0, "solarize": 0.0, "blur": "none"})

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)), np.ones((4, 4, 1)))[:height, :width]
    return np.asarray(np.clip(coarse + rng.integers(-60, 60, (height, width, 3)), 0, 255), np.uint8)


def test_slot_crops__are_crop_major() -> None:
    images = encoded_images()[:4]
    positions = [12, 13, 14, 40]
    crops = slot_crops(CONFIG, 5, positions, images, gram_px=24)
    assert crops.gram_crops is not None
    assert crops.gram_crops.shape == (8, 24, 24, 3)
    assert (crops.global_crops.shape, crops.local_crops.shape) == ((8, 16, 16, 3), (12, 8, 8, 3))
    for image, (position, data) in enumerate(zip(positions, images, strict=True)):
        alone = slot_crops(CONFIG, 5, [position], [data], gram_px=24)
        assert alone.gram_crops is not None
        np.testing.assert_array_equal(crops.global_crops[image::4], alone.global_crops)
        np.testing.assert_array_equal(crops.local_crops[image::4], alone.local_crops)
        np.testing.assert_array_equal(crops.gram_crops[image::4], alone.gram_crops)


def test_slot_crops__without_gram_there_are_none_and_with_it_the_others_stay() -> None:
    images = encoded_images()[:3]
    without, with_gram = (slot_crops(CONFIG, 5, [7, 8, 9], images, gram_px=px) for px in (None, 24))
    assert without.gram_crops is None
    np.testing.assert_array_equal(without.global_crops, with_gram.global_crops)
    np.testing.assert_array_equal(without.local_crops, with_gram.local_crops)


def test_slot_crops__photometric_can_be_left_to_be_done_later() -> None:
    images, positions = encoded_images()[:6], range(6)
    done, left = (slot_crops(CONFIG, 5, positions, images, photometric=here) for here in (True, False))
    assert done.photometric is None
    assert left.photometric is not None
    assert not np.array_equal(done.global_crops, left.global_crops)
    for crops, plan in zip((left.global_crops, left.local_crops), left.photometric, strict=True):
        apply_photometric(crops, plan)
    np.testing.assert_array_equal(left.global_crops, done.global_crops)
    np.testing.assert_array_equal(left.local_crops, done.local_crops)


def test_slot_crops__what_cannot_be_decoded_is_named() -> None:
    with pytest.raises(RejectedImageError, match="HS-DATA-006"):
        slot_crops(CONFIG, 5, [0], [b"no image"])


def by_pillow(pixels: Pixels, position: int, view: int, px: int) -> Pixels:
    boxes = plan_crops(CONFIG, 5, [position], [pixels.shape[:2]]).boxes
    left, top = int(boxes.left[view, 0]), int(boxes.top[view, 0])
    box = (left, top, left + int(boxes.width[view, 0]), top + int(boxes.height[view, 0]))
    crop = Image.fromarray(pixels).crop(box).resize((px, px), Image.Resampling.BICUBIC)
    return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if boxes.flip[view, 0] else crop)


@given(
    height=st.integers(1, 90),
    width=st.sampled_from([1, 2, 30, 90, 800]),
    swap=st.booleans(),
    position=st.integers(0, 99),
)
def test_slot_crops__of_any_image_are_pillows(height: int, width: int, swap: bool, position: int) -> None:
    """Cut, resized (larger or smaller) by the antialiased bicubic filter, flipped: within 2 levels.

    No blacks and whites: where both overshoot, they clip between the two passes, whose order is not always the same.
    """
    if swap:
        height, width = width, height
    pixels = 64 + noise(height, width) // 2
    crops = slot_crops(PLAIN, 5, [position], [encode(pixels)], gram_px=24)
    assert crops.gram_crops is not None
    for found, first_view, px in [(crops.global_crops, 0, 16), (crops.local_crops, 2, 8), (crops.gram_crops, 0, 24)]:
        for at, crop in enumerate(found):
            expected = by_pillow(pixels, position, first_view + at, px)
            difference = crop.astype(int) - expected
            assert np.abs(difference).max() <= 2
            assert abs(difference.mean()) < 0.2


def test_slot_crops__gram_crops_have_the_colours_of_the_image() -> None:
    distorting = CONFIG.model_copy(update={"jitter": 1.0, "grey": 0.5, "solarize": 1.0})
    images = encoded_images()[:4]
    crops = slot_crops(distorting, 5, range(4), images, gram_px=16)
    assert crops.gram_crops is not None
    np.testing.assert_array_equal(crops.gram_crops, slot_crops(PLAIN, 5, range(4), images).global_crops)
    assert not np.array_equal(crops.gram_crops, crops.global_crops)


@pytest.mark.parametrize("threads", [1, 2])
def test_slot_crops__are_the_same_at_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    expected = slot_crops(CONFIG, 5, range(4), encoded_images()[:4])
    torch.set_num_threads(threads)
    try:
        found = slot_crops(CONFIG, 5, range(4), encoded_images()[:4])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found.global_crops, expected.global_crops)


@pytest.mark.parametrize(
    ("spare", "shrink"), [(0.1, 1), (1, 1), (3.9, 1), (4, 2), (7.9, 2), (8, 4), (15.9, 4), (16, 8), (100, 8)]
)
def test_largest_shrink__leaves_every_part_twice_as_large_as_its_crop(spare: float, shrink: int) -> None:
    assert largest_shrink(spare) == shrink


def detailed_photograph(seed: int, height: int = 1200, width: int = 1600) -> bytes:
    """A large JPEG with detail down to the last pixel, more than photographs have: amplitude ~ 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    layers = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width)) for _ in range(3)
    ]
    pixels = np.stack([128 + 50 * layer / layer.std() for layer in layers], axis=2)
    return encode(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG", quality=92)


def test_slot_crops__decoding_smaller_keeps_what_crops_show_and_their_statistics() -> None:
    """A shrunk JPEG against the same pixels as PNG, which is never shrunk."""
    config = AugmentationConfig(global_px=112, local_px=48, jitter=0, grey=0, solarize=0, blur="none")
    for seed in range(2):
        jpeg = detailed_photograph(seed)
        shrunk, whole = (slot_crops(config, 5, range(4), [data] * 4) for data in (jpeg, encode(decode_rgb(jpeg))))
        for ours, exact in [(shrunk.global_crops, whole.global_crops), (shrunk.local_crops, whole.local_crops)]:
            assert not np.array_equal(ours, exact)
            a, b = ours.astype(float), exact.astype(float)
            assert abs(a.mean() - b.mean()) < 0.1
            assert a.var() == pytest.approx(b.var(), rel=0.015)
            # Variance of the differences between neighbours: the finest detail, which shrinking takes first.
            assert np.diff(a, axis=2).var() == pytest.approx(np.diff(b, axis=2).var(), rel=0.04)
            assert np.abs(a - b).mean() < 2.5


def test_slot_crops__small_photographs_are_decoded_whole() -> None:
    jpeg = encode(noise(400, 533), "JPEG", quality=90)
    config = AugmentationConfig()
    shrunk, whole = (slot_crops(config, 5, range(4), [data] * 4) for data in (jpeg, encode(decode_rgb(jpeg))))
    np.testing.assert_array_equal(shrunk.global_crops, whole.global_crops)
    np.testing.assert_array_equal(shrunk.local_crops, whole.local_crops)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_slot_crops__of_a_shrunk_turned_jpeg_show_the_upright_image(orientation: int) -> None:
    config = PLAIN.model_copy(update={"local_count": 8})
    y, x = np.mgrid[:900, :1260] / 4.5
    pixels = np.stack([y, x * 0.9, 250 - 0.5 * (x + y)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encode(pixels, "JPEG", quality=95, exif=exif)
    shrunk, whole = (slot_crops(config, 5, range(8), [data] * 8) for data in (jpeg, encode(decode_rgb(jpeg))))
    assert not np.array_equal(shrunk.local_crops, whole.local_crops)
    # An edge moves by up to half a pixel of the shrunk image: 1 to 2 levels of this slope.
    assert np.abs(shrunk.local_crops.astype(int) - whole.local_crops).max() <= 6
    assert np.abs(shrunk.local_crops.astype(int) - whole.local_crops).mean() < 1.5
