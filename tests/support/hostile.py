"""Files that somebody made to hurt, or that happen to: each with its name, its bytes and what has to become of it.

``hostile_images`` makes them in memory. ``write_folder`` adds what only a file system can hold (links, pipes, names in
no encoding, a sparse file of 100 GB), ``write_tar`` what only an archive can (absolute names, a size that lies).
Everything is made by the same code on every machine and takes about a second.
"""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH_PX, HEIGHT_PX = 96, 64
_Y, _X = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
PHOTO = Image.fromarray(np.stack([_X * 2, _Y * 3, (_X * _Y) % 251], axis=2).astype(np.uint8))
"""What most of the files show: its eight orientations all differ."""
SPARSE_BYTES = 100 * 10**9


@dataclass(frozen=True, slots=True)
class Hostile:
    """One file. ``reason`` is the one for which it is refused with the default limits; ``None``: it is accepted."""

    name: str
    data: bytes
    reason: str | None


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = zlib.compress(bytes(100))) -> bytes:
    """A PNG of 8-bit RGB that claims a size, whatever its pixels are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header says another size."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def lossless_jpeg(width: int, height: int) -> bytes:
    """A whole JPEG of process SOF3 in RGB, all of one colour: libjpeg-turbo decodes it, and crashes on shrinking it.

    Source: ITU T.81, annex H and B.2: one Huffman code (0: no difference), predictor 1, so a bit for every sample.
    """
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(bytes([name, 0x11, 0]) for name in b"RGB")
    table = bytes([0, 1, *bytes(15), 0])
    scan = b"\3" + b"".join(bytes([name, 0]) for name in b"RGB") + bytes([1, 0, 0])
    segments = ((0xC3, frame), (0xC4, table), (0xDA, scan))
    header = b"".join(bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + header + bytes(3 * width * height // 8) + b"\xff\xd9"


def of_process(jpeg: bytes, process: int) -> bytes:
    """A baseline JPEG that says it is coded by another process: 9 for SOF9."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[:at] + bytes([0xFF, 0xC0 + process]) + jpeg[at + 2 :]


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = encode(PHOTO, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + whole[-2:]


def with_segment(jpeg: bytes, marker: int, content: bytes, times: int = 1) -> bytes:
    """A JPEG with something between its start and the rest."""
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    return jpeg[:2] + segment * times + jpeg[2:]


def tiff(entries: int, next_directory: int = 0) -> bytes:
    """A TIFF header that claims so many entries, of which one is there."""
    return (
        b"II*\0"
        + struct.pack("<IH", 8, entries)
        + struct.pack("<HHII", 256, 4, 1, 64)
        + struct.pack("<I", next_directory)
    )


def hostile_images() -> tuple[Hostile, ...]:
    """All that are plain bytes."""
    jpeg, photo_png, webp = encode(PHOTO, "JPEG"), encode(PHOTO, "PNG"), encode(PHOTO, "WEBP", lossless=True)
    return (
        *_bombs(jpeg, photo_png),
        *_damaged(jpeg, photo_png, webp),
        *_disguised(jpeg, photo_png),
        *_unusual(jpeg),
        *_foreign(),
    )


def _bombs(jpeg: bytes, photo_png: bytes) -> Iterator[Hostile]:
    yield Hostile("bomb-50000.png", png(50_000, 50_000), "too-many-pixels")
    yield Hostile("bomb-2-31.png", png(2**31 - 1, 2**31 - 1), "too-many-pixels")
    yield Hostile("bomb-60000.jpg", claiming(jpeg, 60_000, 60_000), "too-many-pixels")
    webp_canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (2**24 - 1).to_bytes(3, "little") * 2
    riff = b"RIFF" + struct.pack("<I", 4 + len(webp_canvas)) + b"WEBP" + webp_canvas
    yield Hostile("bomb-canvas.webp", riff, "too-many-pixels")
    yield Hostile("bomb-at-the-limit.png", encode(Image.new("L", (8000, 8000)), "PNG"), None)
    flood = zlib.compress(bytes(2**26), 9)
    yield Hostile("bomb-more-pixels-than-said.png", png(64, 64, pixels=flood), None)
    yield Hostile("bomb-profile.png", png(64, 64, chunk(b"iCCP", b"p\0\0" + flood), pixels=flood), "undecodable")
    texts = PngInfo()
    texts.add_text("Comment", "x" * 2**23, zip=True)
    yield Hostile("bomb-text.png", encode(PHOTO, "PNG", pnginfo=texts), "undecodable")
    many = PngInfo()
    for number in range(200):
        many.add_text(f"Comment {number}", "x" * (2**19), zip=True)
    yield Hostile("bomb-texts.png", encode(PHOTO, "PNG", pnginfo=many), "undecodable")
    tiny_chunks = photo_png[:33] + chunk(b"tEXt", b"a\0b") * 100_000 + photo_png[33:]
    yield Hostile("bomb-100000-chunks.png", tiny_chunks, None)
    yield Hostile("bomb-scans.jpg", scan_bomb(5000), "too-many-scans")
    yield Hostile("bomb-segments.jpg", with_segment(jpeg, 0xE5, b"x" * 60_000, times=200), None)
    yield Hostile("bomb-thumbnail.jpg", with_segment(jpeg, 0xE1, b"Exif\0\0" + jpeg[:60_000]), None)
    yield Hostile("bomb-ratio.png", encode(Image.new("RGB", (1, 4000)), "PNG"), "extreme-ratio")


def _damaged(jpeg: bytes, photo_png: bytes, webp: bytes) -> Iterator[Hostile]:
    yield Hostile("empty.jpg", b"", "empty")
    for name, whole in (("jpg", jpeg), ("png", photo_png), ("webp", webp)):
        for percent in (50, 90, 99):
            at = len(whole) * percent // 100
            yield Hostile(f"cut-at-{percent}.{name}", whole[:at], "truncated")
    yield Hostile("cut-header.jpg", jpeg[:160], "undecodable")
    yield Hostile("cut-magic.jpg", jpeg[:2], "not-an-image")
    yield Hostile("half-zeros.jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), "truncated")
    wrong_sum = photo_png[:40] + bytes([photo_png[40] ^ 255]) + photo_png[41:]
    yield Hostile("wrong-checksum.png", wrong_sum, "undecodable")
    yield Hostile("zeros.jpg", bytes(2**20), "not-an-image")
    yield Hostile("random.jpg", np.random.default_rng(7).bytes(4096), "not-an-image")
    yield Hostile("random-after-magic.jpg", b"\xff\xd8\xff" + np.random.default_rng(8).bytes(4096), "undecodable")
    yield Hostile("no-size.png", png(0, 0), "undecodable")
    yield Hostile("pixels-missing.png", png(50, 50), "truncated")
    for name, block in _BROKEN_EXIF.items():
        yield Hostile(f"exif-{name}.jpg", with_segment(jpeg, 0xE1, b"Exif\0\0" + block), None)
    yield Hostile("profile-broken.jpg", with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\x01\xff" + b"x" * 900), "undecodable")


_BROKEN_EXIF = {
    "empty": b"",
    "points-away": b"MM\0*\xff\xff\xff\xff",
    "65535-entries": b"II*\0\x08\0\0\0\xff\xff",
    "orientation-9": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
    "circle": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
}


def _disguised(jpeg: bytes, photo_png: bytes) -> Iterator[Hostile]:
    zipped = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    yield Hostile("and-a-zip.jpg", jpeg + zipped, None)
    yield Hostile("and-a-pdf.jpg", with_segment(jpeg, 0xFE, b"%PDF-1.4\n1 0 obj<<>>endobj"), None)
    yield Hostile("and-a-page.jpg", jpeg + b"<html><script>alert(1)</script></html>", None)
    yield Hostile("and-another.png", photo_png + jpeg, None)
    yield Hostile("png-named.jpg", photo_png, None)
    yield Hostile("jpeg-named.png", jpeg, None)
    yield Hostile("page-named.jpg", b"<html><img src='x.jpg'></html>", "not-an-image")
    yield Hostile("program-named.jpg", b"\x7fELF\x02\x01\x01" + bytes(200), "not-an-image")
    yield Hostile("jpeg-in-png.png", photo_png[:8] + jpeg, "truncated")


def _unusual(jpeg: bytes) -> Iterator[Hostile]:
    yield Hostile("one-pixel.png", encode(PHOTO.crop((0, 0, 1, 1)), "PNG"), None)
    deep = (np.arange(WIDTH_PX * HEIGHT_PX).reshape(HEIGHT_PX, WIDTH_PX) * 9).astype(np.uint16)
    yield Hostile("sixteen-bits.png", encode(Image.fromarray(deep), "PNG"), None)
    cmyk = encode(PHOTO.convert("CMYK"), "JPEG")
    yield Hostile("cmyk.jpg", cmyk, None)
    adobe = cmyk.index(b"Adobe") + 11
    yield Hostile("ycck.jpg", cmyk[:adobe] + b"\x02" + cmyk[adobe + 1 :], None)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Hostile(f"orientation-{orientation}.jpg", encode(PHOTO, "JPEG", exif=exif), None)
    frames = {"save_all": True, "append_images": [PHOTO.rotate(180)]}
    yield Hostile("animated.png", encode(PHOTO, "PNG", **frames), "animated")
    yield Hostile("animated.webp", encode(PHOTO, "WEBP", **frames), "animated")
    yield Hostile("several.jpg", encode(PHOTO, "MPO", **frames), None)
    yield Hostile("lossless.jpg", lossless_jpeg(2048, 2048), "unsupported-format")
    yield Hostile("lossless-after-filler.jpg", _filled(lossless_jpeg(512, 512)), "unsupported-format")
    for process in (5, 9, 10, 11):
        yield Hostile(f"process-{process}.jpg", of_process(jpeg, process), "unsupported-format")
    yield Hostile("grey.jpg", encode(PHOTO.convert("L"), "JPEG"), None)


def _filled(jpeg: bytes) -> bytes:
    """Bytes that are no segment before the first one, among them a baseline frame that libjpeg does not see."""
    return jpeg[:2] + b"\xff\xfe\0\x06\xff\xc0\0\x08" + b"no segment\xff\0\xff\xff" + jpeg[2:]


def _foreign() -> Iterator[Hostile]:
    """Formats that are not accepted unless they are asked for, and those that never are."""
    yield Hostile(
        "animated.gif", encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]), "unsupported-format"
    )
    yield Hostile("still.gif", encode(PHOTO, "GIF"), "unsupported-format")
    yield Hostile("photo.bmp", encode(PHOTO, "BMP"), "unsupported-format")
    yield Hostile("photo.tiff", encode(PHOTO, "TIFF"), "unsupported-format")
    yield Hostile("65535-entries.tiff", tiff(65_535), "unsupported-format")
    yield Hostile("circle.tiff", tiff(1, next_directory=8), "unsupported-format")
    yield Hostile("picture.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported-format")
    laughs = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY l0 "ha">{laughs}]><svg><text>&l9;</text></svg>'
    yield Hostile("laughs.svg", bomb.encode(), "unsupported-format")
    yield Hostile("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n", "unsupported-format")
    yield Hostile("layers.psd", b"8BPS\0\x01" + bytes(6) + b"\0\x03" + b"\xff" * 8, "unsupported-format")
    yield Hostile("photo.heic", b"\0\0\0\x18ftypheic" + bytes(12), "unsupported-format")
    yield Hostile("icon.ico", encode(PHOTO.resize((16, 16)), "ICO"), "unsupported-format")
    yield Hostile("icon.icns", b"icns" + struct.pack(">I", 2**31), "unsupported-format")
    yield Hostile("paper.pdf", b"%PDF-1.7\n", "unsupported-format")


def write_folder(folder: Path) -> dict[str, str | None]:
    """Fill an existing folder; returns what has to become of each file, by its name as ingest shows it.

    Links, a pipe and names of all kinds are among them, and the device is there as a link (making one takes root).
    """
    expected = {file.name: file.reason for file in hostile_images()}
    for file in hostile_images():
        (folder / file.name).write_bytes(file.data)
    jpeg = encode(PHOTO, "JPEG", quality=60)  # not the bytes of any other file
    outside = folder.parent / f"{folder.name}-outside.jpg"
    outside.write_bytes(jpeg)
    (folder / "link-out.jpg").symlink_to(outside)
    (folder / "link-up.jpg").symlink_to(Path("..") / outside.name)
    (folder / "link-device.jpg").symlink_to("/dev/zero")
    (folder / "link-nowhere.jpg").symlink_to("nowhere.jpg")
    (folder / "link-circle.jpg").symlink_to("link-circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(encode(PHOTO, "JPEG", quality=61))
    with (folder / "sparse.jpg").open("wb") as sparse:
        sparse.truncate(SPARSE_BYTES)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(encode(PHOTO, "JPEG", quality=62))
    (folder / ("n" * 251 + ".jpg")).write_bytes(encode(PHOTO, "JPEG", quality=63))
    (folder / "line\nbreak; $(reboot) %00.jpg").write_bytes(encode(PHOTO, "JPEG", quality=64))
    return expected | {
        "link-out.jpg": "link-leaves-source",
        "link-up.jpg": "link-leaves-source",
        "link-device.jpg": "link-leaves-source",
        "link-nowhere.jpg": "unreadable",
        "link-circle.jpg": "unreadable",
        "pipe.jpg": "not-a-file",
        "folder.jpg/inside.jpg": None,
        "sparse.jpg": "too-many-bytes",
        "caf\\xe9.jpg": None,
        "n" * 251 + ".jpg": None,
        "line\nbreak; $(reboot) %00.jpg": None,
    }


def write_tar(path: Path) -> dict[str, str | None]:
    """Write an archive of the same images and of members that only archives can have; returns as ``write_folder``.

    The last header claims 8 EiB, so the archive itself is refused from there on. Two images share one name.
    """
    expected = {file.name: file.reason for file in hostile_images()}
    jpeg = encode(PHOTO, "JPEG", quality=60)
    with path.open("wb") as file:
        for image in hostile_images():
            file.write(_member(image.name.encode(), image.data))
        for name in _UNSAFE_NAMES:
            file.write(_member(name, jpeg))
        for special, kind in _NO_FILES.items():
            file.write(_member(special.encode(), b"", kind=kind, target=b"../../etc/passwd"))
        for quality in (61, 62):  # the same name twice, with other bytes
            file.write(_member(b"twice.jpg", encode(PHOTO, "JPEG", quality=quality)))
        file.write(_member(b"lies.jpg", jpeg, claimed_bytes=2**63 - 1))
    expected |= {name.decode(): "unsafe-name" for name in _UNSAFE_NAMES}
    expected |= dict.fromkeys(_NO_FILES, "not-a-file") | {"twice.jpg": None}
    return {f"{path.name}/{name}": reason for name, reason in expected.items()} | {path.name: "broken-archive"}


_UNSAFE_NAMES = (b"../../escape.jpg", b"/etc/escape.jpg", b"a/../../escape.jpg", b"a\\..\\escape.jpg")
_NO_FILES = {
    "symlink.jpg": tarfile.SYMTYPE,
    "hardlink.jpg": tarfile.LNKTYPE,
    "pipe.jpg": tarfile.FIFOTYPE,
    "device.jpg": tarfile.CHRTYPE,
}


def _member(
    name: bytes, data: bytes, *, kind: bytes = tarfile.REGTYPE, target: bytes = b"", claimed_bytes: int | None = None
) -> bytes:
    """A member by hand: tarfile would refuse, or mend, some of them."""
    size = len(data) if claimed_bytes is None else claimed_bytes
    field = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = (name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, field, b"00000000000\0", b" " * 8, kind)
    header = (b"".join(fields) + target.ljust(100, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + data + bytes(-len(data) % 512)
