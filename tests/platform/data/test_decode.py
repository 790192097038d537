"""JPEG by simplejpeg against Pillow, pixel by pixel; sizes and orientations of whole and of shrunk images."""

import struct
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.hostile import lossless_jpeg

from heliostat.data.decode import SHRINKS, SHRINKS_FROM_PX, ImageHeader, decode_rgb, exif_orientation, read_header
from heliostat.errors import RejectedImageError


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Coarse and fine structure in colour."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8), (width, height))
    return Image.fromarray(np.clip(coarse + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int, format: str = "JPEG", size: tuple[int, int] = (67, 45)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(*size), format, exif=exif)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [40, 95])
def test_decode_rgb__of_a_jpeg_gives_pillows_pixels(subsampling: str, progressive: bool, quality: int) -> None:
    for height, width in [(64, 48), (37, 51), (1, 9)]:
        data = encode(picture(height, width), subsampling=subsampling, progressive=progressive, quality=quality)
        np.testing.assert_array_equal(decode_rgb(data), by_pillow(data))


def test_decode_rgb__of_jpegs_in_other_colours_gives_pillows_pixels() -> None:
    for data in [
        encode(picture(40, 30).convert("L")),
        encode(picture(40, 30), keep_rgb=True),
        encode(picture(40, 30), restart_marker_blocks=2),
        encode(picture(40, 30).convert("CMYK")),
    ]:
        np.testing.assert_array_equal(decode_rgb(data), by_pillow(data))
    assert read_header(encode(picture(40, 30).convert("CMYK"))) == ImageHeader(40, 30, shrinks=False)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_header__says_the_size_of_the_upright_image(orientation: int, format: str) -> None:
    data = turned(orientation, format)
    height, width, _ = by_pillow(data).shape
    assert read_header(data) == ImageHeader(height, width, shrinks=False)
    assert decode_rgb(data).shape == (height, width, 3)
    np.testing.assert_array_equal(decode_rgb(data), by_pillow(data))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    orientation=st.integers(1, 8),
    shrink=st.sampled_from(SHRINKS),
)
def test_decode_rgb__shrinks_each_side_rounded_up(height: int, width: int, orientation: int, shrink: int) -> None:
    data = turned(orientation, size=(height, width))
    header = read_header(data)
    expected = (-(-header.height // shrink), -(-header.width // shrink), 3)
    assert decode_rgb(data, shrink).shape == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_decode_rgb__a_shrunk_image_shows_the_same_as_the_whole_one(orientation: int, shrink: int) -> None:
    data = turned(orientation, size=(96, 160))
    whole = by_pillow(data).astype(float)
    height, width, _ = whole.shape
    averaged = whole.reshape(height // shrink, shrink, width // shrink, shrink, 3).mean((1, 3))
    # Colours are kept at half the size by the JPEG and are spread over less when it is shrunk.
    assert np.abs(decode_rgb(data, shrink) - averaged).mean() < 3
    assert np.abs(decode_rgb(data, shrink).mean((0, 1)) - whole.mean((0, 1))).max() < 0.5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_read_header__only_large_jpegs_shrink(orientation: int, format: str) -> None:
    for short in (SHRINKS_FROM_PX - 1, SHRINKS_FROM_PX):
        for size in ((short, 1000), (1000, short)):
            shrinks = format == "JPEG" and short == SHRINKS_FROM_PX
            assert read_header(turned(orientation, format, size)).shrinks == shrinks


def test_decode_rgb__a_lossless_jpeg_is_never_shrunk() -> None:
    data = lossless_jpeg(2048, 2048)  # shrunk by libjpeg-turbo 3.2, one of this size ends the process
    assert read_header(data) == ImageHeader(2048, 2048, shrinks=False)
    for shrink in SHRINKS:
        pixels = decode_rgb(data, shrink)
        assert pixels.shape == (2048, 2048, 3)
        assert (pixels == pixels[0, 0]).all()


def test_decode_rgb__other_formats_are_never_shrunk() -> None:
    assert decode_rgb(encode(picture(40, 30), "PNG"), 4).shape == (40, 30, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_decode_rgb__writes_into_the_buffer_it_is_given(orientation: int) -> None:
    small, large = turned(orientation, size=(20, 30)), turned(orientation, size=(67, 45))
    buffer = np.zeros(67 * 45 * 3 + 5, np.uint8)
    np.testing.assert_array_equal(decode_rgb(large, buffer=buffer), by_pillow(large))
    assert buffer[: 67 * 45 * 3].any()
    np.testing.assert_array_equal(decode_rgb(small, buffer=buffer), by_pillow(small))
    assert not np.shares_memory(decode_rgb(small), decode_rgb(small))


@pytest.mark.parametrize("cut", [3, 40, 300, -200, -20, -2])
def test_decode_rgb__a_cut_jpeg_is_rejected_whole_or_shrunk(cut: int) -> None:
    data = encode(picture(67, 45))[:cut]
    for shrink in (1, 2):
        with pytest.raises(RejectedImageError, match="HS-DATA-006"):
            decode_rgb(data, shrink)


def test_decode_rgb__damage_that_pillow_overlooks_is_rejected() -> None:
    data = bytearray(encode(picture(200, 200), quality=90))
    at = len(data) // 2
    data[at : at + 40] = b"\xff\xd3" + data[at + 2 : at + 40]  # a marker out of turn
    Image.open(BytesIO(bytes(data))).load()
    with pytest.raises(RejectedImageError, match="cannot be decoded"):
        decode_rgb(bytes(data))


def exif_segment(block: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block


SIX = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        (exif_segment(SIX), 6),
        (exif_segment(b"http://ns.adobe.com/xap/1.0/\0<x/>") + exif_segment(SIX), 6),
        (b"\xff\xff" + exif_segment(SIX)[1:], 6),  # a fill byte before the marker
        (b"\xff\xfe\0\x0a" + SIX[:8] + exif_segment(SIX), 6),  # a comment that looks like EXIF
        (exif_segment(b"Exif\0\0"), 1),
        (exif_segment(SIX[:-8]), 1),
        (b"", 1),
    ],
)
def test_read_header__finds_the_orientation_among_other_segments(segments: bytes, orientation: int) -> None:
    plain = encode(picture(20, 30))
    data = plain[:2] + segments + plain[2:]
    expected = ImageHeader(20, 30, shrinks=False) if orientation == 1 else ImageHeader(30, 20, shrinks=False)
    assert read_header(data) == expected


@given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_exif_orientation__of_arbitrary_bytes_is_one_of_eight(block: bytes, start: bytes) -> None:
    assert exif_orientation(b"Exif\0\0" + start + block) in range(1, 9)


@given(st.binary(max_size=300))
def test_read_header__of_arbitrary_bytes_is_a_size_or_a_rejection(body: bytes) -> None:
    with pytest.raises(RejectedImageError):
        read_header(b"\xff\xd8\xff" + body)
