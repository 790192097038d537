import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from support.hostile import PHOTO, lossless_jpeg, of_process, scan_bomb, with_segment

from heliostat.data import images
from heliostat.data.codecs import KNOWN_FORMATS
from heliostat.data.decode import SHRINKS_FROM_PX, RgbImage, decode_rgb, read_header
from heliostat.data.headers import jpeg_process, jpeg_scans
from heliostat.data.images import ImageInfo, ImageLimits, Reason, inspect
from heliostat.errors import RejectedImageError

GRADIENT = np.stack(np.broadcast_arrays(np.arange(40)[:, None] * 4, np.arange(60) * 3, 128), axis=2).astype(np.uint8)
"""An image whose eight orientations all differ, 60 px wide and 40 px high."""


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_with_exif(block: bytes) -> bytes:
    plain = encode(Image.fromarray(GRADIENT), "JPEG", quality=95)
    segment = b"Exif\0\0" + block
    app1 = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    jfif_bytes = (
        4 + struct.unpack_from(">H", plain, 4)[0] - 2
    )  # replaced: without it Pillow would look for a DPI in EXIF
    return plain[:2] + app1 + plain[2 + jfif_bytes :]


def with_orientation(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    return encode(Image.fromarray(GRADIENT), format, exif=exif, **options)


def reason_of(data: bytes, limits: ImageLimits | None = None) -> str:
    with pytest.raises(RejectedImageError) as caught:
        inspect(data, limits or ImageLimits())
    return caught.value.reason


GOOD = {
    "jpeg": encode(Image.fromarray(GRADIENT), "JPEG"),
    "progressive": encode(Image.fromarray(GRADIENT), "JPEG", progressive=True),
    "png": encode(Image.fromarray(GRADIENT)),
    "interlaced": encode(Image.fromarray(GRADIENT).quantize(), interlace=1),
    "webp": encode(Image.fromarray(GRADIENT), "WEBP"),
    "webp-lossless": encode(Image.fromarray(GRADIENT), "WEBP", lossless=True),
}
FORMATS = {"jpeg": "JPEG", "progressive": "JPEG", "png": "PNG", "interlaced": "PNG"}


@pytest.mark.parametrize("name", GOOD)
def test_inspect__accepts_the_three_formats(name: str) -> None:
    assert inspect(GOOD[name]) == ImageInfo(60, 40, FORMATS.get(name, "WEBP"))


@pytest.mark.parametrize("name", GOOD)
def test_inspect__rejects_the_image_cut_off_anywhere(name: str) -> None:
    whole = GOOD[name]
    for end in range(len(whole)):
        assert reason_of(whole[:end]) in {Reason.EMPTY, Reason.NOT_AN_IMAGE, Reason.TRUNCATED, Reason.UNDECODABLE}


@pytest.mark.parametrize("progressive", [False, True])
def test_inspect__says_that_a_photograph_without_its_end_is_truncated(progressive: bool) -> None:
    whole = encode(PHOTO, "JPEG", progressive=progressive)
    for end in (len(whole) // 2, len(whole) - 100, len(whole) - 2):
        assert reason_of(whole[:end]) == "truncated"


OPTIONAL = {
    "AVIF": encode(Image.fromarray(GRADIENT), "AVIF", quality=95),
    "BMP": encode(Image.fromarray(GRADIENT), "BMP"),
    "GIF": encode(Image.fromarray(GRADIENT).quantize(), "GIF"),
    "TIFF": encode(Image.fromarray(GRADIENT), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("format", OPTIONAL)
def test_inspect__accepts_further_formats_only_if_they_are_allowed(format: str) -> None:
    data = OPTIONAL[format]
    assert reason_of(data) == "unsupported-format"
    assert reason_of(data, ImageLimits(formats=KNOWN_FORMATS - {format})) == "unsupported-format"
    limits = ImageLimits(formats=frozenset({format}))
    assert inspect(data, limits) == ImageInfo(60, 40, format)
    assert reason_of(GOOD["jpeg"], limits) == "unsupported-format"
    assert np.abs(decode_rgb(data).astype(int) - GRADIENT).mean() < 6
    assert reason_of(data, ImageLimits(max_side_px=59, formats=limits.formats)) == "too-many-pixels"
    assert reason_of(data[: len(data) // 2], limits) in {"truncated", "undecodable"}


@pytest.mark.parametrize("format", ["AVIF", "GIF", "TIFF"])
def test_inspect__rejects_several_frames_or_pages(format: str) -> None:
    second = [Image.fromarray(255 - GRADIENT)]
    data = encode(Image.fromarray(GRADIENT), format, save_all=True, append_images=second)
    assert reason_of(data, ImageLimits(formats=KNOWN_FORMATS)) == "animated"


def test_inspect__rejects_tiffs_whose_samples_have_no_known_range() -> None:
    limits = ImageLimits(formats=KNOWN_FORMATS)
    for kind in (np.float32, np.int32):
        assert (
            reason_of(encode(Image.fromarray(GRADIENT[:, :, 0].astype(kind)), "TIFF"), limits) == "unsupported-format"
        )
    sixteen = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    data = encode(Image.fromarray(sixteen), "TIFF")
    assert inspect(data, limits) == ImageInfo(60, 40, "TIFF")
    np.testing.assert_array_equal(decode_rgb(data)[:, :, 0], sixteen >> 8)


def test_limits__name_the_formats_that_can_be_allowed() -> None:
    with pytest.raises(ValueError, match="no codec for EPS, JPG, there are AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        ImageLimits(formats=frozenset({"JPG", "EPS"}))


def test_scans__of_the_picture_count_and_no_others() -> None:
    whole = scan_bomb(20)
    assert jpeg_scans(GOOD["jpeg"]) == 1
    assert jpeg_scans(GOOD["progressive"]) == 10  # the usual script of libjpeg
    assert jpeg_scans(whole) == 29
    thumbnail = with_segment(GOOD["jpeg"], 0xE1, b"Exif\0\0" + b"\xff\xda" * 200)
    assert jpeg_scans(thumbnail) == 1
    film_behind = GOOD["progressive"] + b"\xff\xda" * 200
    assert jpeg_scans(film_behind) == 10
    assert inspect(thumbnail) == inspect(film_behind) == ImageInfo(60, 40, "JPEG")
    assert jpeg_scans(GOOD["jpeg"][:-2]) == 1  # no end


def test_jpeg_process__is_that_of_the_first_frame_that_is_a_segment() -> None:
    jpeg = GOOD["jpeg"]
    assert jpeg_process(jpeg) == 0xC0
    assert jpeg_process(GOOD["progressive"]) == 0xC2
    assert jpeg_process(lossless_jpeg(16, 16)) == 0xC3
    assert jpeg_process(with_segment(jpeg, 0xE1, b"\xff\xc3\0\x08")) == 0xC0  # a thumbnail
    assert jpeg_process(b"\xff\xd8\xff\xd0\xff\xff\x01 filler \xff\0" + jpeg[2:]) == 0xC0
    assert jpeg_process(b"\xff\xd8\xff\xfe\0\0" + jpeg[2:]) == 0xC0  # a length that is too small
    assert jpeg_process(lossless_jpeg(16, 16) + jpeg) == 0xC3
    assert jpeg_process(jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :]) is None
    assert jpeg_process(jpeg[:2]) is None


def test_inspect__accepts_the_three_common_processes_and_names_another() -> None:
    assert inspect(of_process(GOOD["jpeg"], 1)) == ImageInfo(60, 40, "JPEG")
    for process in (3, 5, 6, 7, 9, 10, 11, 13, 14, 15):
        with pytest.raises(RejectedImageError, match=f"process SOF{process}, accepted are baseline, ext") as caught:
            inspect(of_process(GOOD["jpeg"], process))
        assert caught.value.reason == "unsupported-format"


def test_inspect__decodes_at_every_size_that_training_may(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(data: bytes, shrink: int = 1) -> RgbImage:
        seen.append(shrink)
        if shrink == 4 and data.endswith(b"broken"):
            raise ValueError("no such size")
        return decode_rgb(data, shrink)

    monkeypatch.setattr(images, "decode_rgb", watched)
    large, small = (encode(PHOTO.resize((1000, side)), "JPEG") for side in (SHRINKS_FROM_PX, SHRINKS_FROM_PX - 1))
    inspect(large)
    assert seen == [1, 2, 4, 8]
    inspect(small)
    inspect(encode(PHOTO.resize((1000, 900))))
    assert seen[4:] == [1, 1]
    assert read_header(large).shrinks
    assert not read_header(small).shrinks
    assert reason_of(large + b"broken") == "undecodable"


def test_inspect__names_the_codes_value_rule_and_next_step() -> None:
    with pytest.raises(RejectedImageError) as caught:
        inspect(png_header(30_000, 30_000))
    assert str(caught.value) == (
        "HS-DATA-006: the header says 30000 x 30000 px, a side may have 16384. Replace or remove the file."
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text file\n", "not-an-image"),
        (b"<html><img src='x.jpg'></html>", "not-an-image"),
        (b"\x89PN", "not-an-image"),
        (encode(Image.fromarray(GRADIENT), "GIF"), "unsupported-format"),
        (encode(Image.fromarray(GRADIENT), "TIFF"), "unsupported-format"),
        (encode(Image.fromarray(GRADIENT), "BMP"), "unsupported-format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported-format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported-format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported-format"),
        (png_header(30_000, 30_000), "too-many-pixels"),
        (png_header(2**31 - 1, 1), "too-many-pixels"),
        (png_header(10_000, 10_000), "too-many-pixels"),
        (png_header(2100, 100), "extreme-ratio"),
        (png_header(0, 10), "undecodable"),
        (png_header(50, 50), "truncated"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "undecodable"),
        (b"\xff\xd8\xff" + b"<?php system('x') ?>", "undecodable"),
        (GOOD["png"][:8] + GOOD["jpeg"], "truncated"),
        (encode(Image.new("L", (4, 4)), save_all=True, append_images=[Image.new("L", (4, 4), 9)]), "animated"),
        (GOOD["png"][:33] + chunk(b"acTL", b"\0" * 8) + GOOD["png"][33:], "animated"),  # Pillow only warns of this one
        (
            encode(Image.new("RGB", (4, 4)), "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]),
            "animated",
        ),
    ],
)
def test_inspect__names_the_reason(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_inspect__rejects_a_compressed_text_that_explodes() -> None:
    texts = PngInfo()
    texts.add_text("Comment", "x" * (8 * 2**20), zip=True)
    assert reason_of(encode(Image.fromarray(GRADIENT), pnginfo=texts)) == "undecodable"


def test_inspect__holds_to_the_limits_given() -> None:
    data = GOOD["png"]
    assert reason_of(data, ImageLimits(max_bytes=len(data) - 1)) == "too-many-bytes"
    assert reason_of(data, ImageLimits(max_side_px=59)) == "too-many-pixels"
    assert reason_of(data, ImageLimits(max_pixels=60 * 40 - 1)) == "too-many-pixels"
    assert reason_of(data, ImageLimits(max_ratio=1.4)) == "extreme-ratio"
    exact = ImageLimits(max_bytes=len(data), max_side_px=60, max_pixels=60 * 40, max_ratio=1.5)
    assert inspect(data, exact) == ImageInfo(60, 40, "PNG")


def test_inspect__lets_other_data_follow_the_image() -> None:
    assert inspect(GOOD["jpeg"] + b"PK\x03\x04 a zip").format == "JPEG"
    assert inspect(GOOD["png"] + b"PK\x03\x04 a zip").format == "PNG"


@given(
    magic=st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBP"]
    ),
    body=st.binary(max_size=200),
)
def test_inspect__arbitrary_bytes_are_only_ever_rejected(magic: bytes, body: bytes) -> None:
    with pytest.raises(RejectedImageError):
        inspect(magic + body)


@given(name=st.sampled_from(sorted(GOOD)), data=st.data())
def test_inspect__a_damaged_image_is_rejected_or_decodes_to_its_size(name: str, data: st.DataObject) -> None:
    damaged = bytearray(GOOD[name])
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + 4] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        info = inspect(bytes(damaged))
    except RejectedImageError as error:
        assert error.reason in set(Reason)
    else:
        assert decode_rgb(bytes(damaged)).shape == (info.height, info.width, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_rgb__turns_the_image_upright_as_pillow_does(orientation: int, format: str) -> None:
    data = with_orientation(orientation, format)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data), expected)
    assert inspect(data) == ImageInfo(expected.shape[1], expected.shape[0], format)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x01",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # orientation 9
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff",  # orientation as a fraction far away
        b"II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f",  # resolution far away: Pillow would warn
    ],
)
def test_decode_rgb__a_broken_exif_block_means_upright(block: bytes) -> None:
    assert decode_rgb(jpeg_with_exif(block)).shape == (40, 60, 3)


def test_decode_rgb__makes_rgb_of_every_mode() -> None:
    photo = Image.fromarray(GRADIENT)
    grey = np.asarray(photo.convert("L"))
    expected_grey = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_rgb(encode(photo)), GRADIENT)
    np.testing.assert_array_equal(decode_rgb(encode(photo.convert("L"))), expected_grey)
    np.testing.assert_array_equal(decode_rgb(encode(photo.convert("LA"))), expected_grey)
    np.testing.assert_array_equal(decode_rgb(encode(photo.convert("RGBA"))), GRADIENT)
    palette = photo.quantize()
    np.testing.assert_array_equal(decode_rgb(encode(palette)), np.asarray(palette.convert("RGB")))
    bits = photo.convert("1")
    np.testing.assert_array_equal(decode_rgb(encode(bits)), np.asarray(bits.convert("RGB")))
    cmyk = photo.convert("CMYK")
    assert np.abs(decode_rgb(encode(cmyk, "JPEG", quality=100)).astype(int) - GRADIENT).mean() < 3


def test_decode_rgb__keeps_the_high_byte_of_16_bit_grey() -> None:
    values = (np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) * 27).astype(np.uint16)
    pixels = decode_rgb(encode(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_decode_rgb__ignores_the_transparency_of_a_palette_and_of_a_colour() -> None:
    palette = Image.fromarray(GRADIENT).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    transparent = encode(palette, transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(decode_rgb(transparent), expected)
    keyed = encode(Image.fromarray(GRADIENT), transparency=(0, 0, 128))
    np.testing.assert_array_equal(decode_rgb(keyed), GRADIENT)


def test_decode_rgb__gives_pixels_that_may_be_written_to() -> None:
    for data in GOOD.values():
        assert decode_rgb(data).flags.writeable
        assert decode_rgb(data).flags.c_contiguous


def test_decode_rgb__rejects_what_cannot_be_decoded() -> None:
    with pytest.raises(RejectedImageError, match="HS-DATA-006"):
        decode_rgb(GOOD["jpeg"][:-20])
