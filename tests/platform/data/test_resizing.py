import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from support.hostile import PHOTO, encode

from heliostat.data.bounded import BoundedDecoder
from heliostat.data.codecs import open_image
from heliostat.data.decode import RgbImage, decode_rgb
from heliostat.data.images import ImageInfo, inspect
from heliostat.data.resizing import shrunken

LARGE = PHOTO.resize((303, 200), Image.Resampling.BICUBIC)


def area_mean(pixels: RgbImage, factor: int) -> NDArray[np.float64]:
    height, width, _ = pixels.shape
    means: NDArray[np.float64] = pixels.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))
    return means


@pytest.mark.parametrize(
    ("format", "options", "same_format"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, "JPEG"),
        ("PNG", {}, "PNG"),
        ("WEBP", {"lossless": True}, "WEBP"),
        ("WEBP", {"quality": 95}, "WEBP"),
        ("AVIF", {"quality": 95}, "JPEG"),
        ("TIFF", {}, "PNG"),
        ("BMP", {}, "PNG"),
    ],
)
def test_shrunken__shows_the_same_picture_smaller(format: str, options: dict[str, object], same_format: str) -> None:
    y, x = np.mgrid[:256, :384]
    smooth = np.stack([x * 0.6, y * 0.9, 128 + 100 * np.sin(x / 40)], axis=2).astype(np.uint8)
    data = encode(Image.fromarray(smooth), format, **options)
    small = shrunken(data, 64)
    assert inspect(small) == ImageInfo(96, 64, same_format)
    assert np.abs(decode_rgb(small) - area_mean(decode_rgb(data), 4)).mean() < 3


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(303, 200, (76, 50)), (200, 303, (50, 76)), (301, 200, (75, 50))]
)
def test_shrunken__keeps_the_ratio(width: int, height: int, expected: tuple[int, int]) -> None:
    info = inspect(shrunken(encode(PHOTO.resize((width, height)), "PNG"), 50))
    assert (info.width, info.height) == expected


def test_shrunken__never_enlarges_nor_touches_what_is_small_enough() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTO, "JPEG", exif=exif)
    assert shrunken(data, 64) is data
    assert shrunken(data, 1000) is data
    assert shrunken(data, 63) != data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shrunken__is_upright_and_without_metadata(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    upright = shrunken(encode(LARGE, "PNG", exif=exif), 50)
    assert not open_image(upright).getexif()
    np.testing.assert_array_equal(
        decode_rgb(upright),
        decode_rgb(shrunken(encode(Image.fromarray(decode_rgb(encode(LARGE, "PNG", exif=exif))), "PNG"), 50)),
    )


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_shrunken__keeps_the_chroma_sampling_of_a_jpeg(sampling: int) -> None:
    small = open_image(shrunken(encode(LARGE, "JPEG", subsampling=sampling), 50))
    assert isinstance(small, JpegImageFile)
    assert get_sampling(small) == sampling


def test_shrunken__keeps_grey_and_loss() -> None:
    assert open_image(shrunken(encode(LARGE.convert("L"), "JPEG"), 50)).mode == "L"
    assert open_image(shrunken(encode(LARGE.convert("CMYK"), "JPEG"), 50)).mode == "RGB"
    assert shrunken(encode(LARGE, "WEBP", lossless=True), 50)[12:16] == b"VP8L"
    assert shrunken(encode(LARGE, "WEBP", quality=80), 50)[12:16] == b"VP8 "
    with_profile = encode(LARGE, "WEBP", lossless=True, icc_profile=b"x" * 5001)  # the pixels come late in the file
    assert shrunken(with_profile, 50)[12:16] == b"VP8L"


def test_resize__gives_the_same_bytes_in_every_process() -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        data = encode(LARGE, format)
        digests = {hashlib.sha256(shrunken(data, 50)).hexdigest()}
        for _ in range(2):
            with BoundedDecoder() as decoder:
                digests.add(hashlib.sha256(decoder.resize(data, 50)).hexdigest())
        assert len(digests) == 1


def test_resize__needs_a_side() -> None:
    with BoundedDecoder() as decoder, pytest.raises(ValueError, match="cannot have a side of 0 px"):
        decoder.resize(encode(PHOTO, "PNG"), 0)
