"""The hostile corpus: every file ends as it should, the process lives, and memory stays within bounds."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import PHOTO, Hostile, encode, hostile_images, tiff, write_folder, write_tar

from heliostat.data.bounded import BoundedDecoder
from heliostat.data.codecs import KNOWN_FORMATS
from heliostat.data.images import ImageLimits
from heliostat.data.sources.folder import FolderSource
from heliostat.data.sources.source import RefusedItem, Source
from heliostat.data.sources.tar import TarSource
from heliostat.errors import RejectedImageError

LIMITS = ImageLimits()
CORPUS = hostile_images()
CHILD_MIB = 1024
"""The largest accepted file of the corpus has 64 megapixels, which are 192 MB as an array and more on the way there."""
PARENT_MIB = 300
"""More than a file of 64 MiB in a few copies; less than the pixels of the bombs."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[BoundedDecoder]:
    with BoundedDecoder(LIMITS) as decoder:
        yield decoder


def outcome(decoder: BoundedDecoder, data: bytes) -> str | None:
    try:
        decoder.inspect(data)
    except RejectedImageError as error:
        return error.reason
    return None


def outcomes(source: Source, decoder: BoundedDecoder) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for unit in source.units():
        for item in source.read(unit, LIMITS):
            reason = item.reason if isinstance(item, RefusedItem) else outcome(decoder, item.data)
            found.setdefault(item.source, set()).add(reason)
    return found


def test_hostile__the_corpus_is_what_it_says() -> None:
    assert len({file.name for file in CORPUS}) == len(CORPUS) >= 75
    assert {file.reason for file in CORPUS} >= {"too-many-pixels", "too-many-scans", "truncated", "animated", None}


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_hostile__each_file_is_named_with_its_reason(file: Hostile, decoder: BoundedDecoder) -> None:
    assert outcome(decoder, file.data) == file.reason


def test_hostile__memory_is_bounded_and_no_file_takes_its_decoder_down() -> None:
    """Every refusal is an answer: were one a crash, the first try of it would have ended the child."""
    parent_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with BoundedDecoder(LIMITS) as decoder:
        outcome(decoder, encode(PHOTO, "JPEG"))
        first = decoder._child
        for file in CORPUS:
            outcome(decoder, file.data)
        assert decoder._child is first
        assert first is not None
        status = Path(f"/proc/{first._process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < CHILD_MIB * 1024  # its peak, in KiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - parent_before < PARENT_MIB * 1024


def test_hostile__allowing_every_format_opens_no_hole() -> None:
    expected = {
        "still.gif": None,
        "photo.bmp": None,
        "photo.tiff": None,
        "animated.gif": "animated",
        "65535-entries.tiff": "undecodable",
        "circle.tiff": "undecodable",
        "layers.psd": "unsupported-format",
        "script.eps": "unsupported-format",
        "laughs.svg": "unsupported-format",
        "photo.heic": "unsupported-format",
    }
    files = {file.name: file for file in CORPUS}
    with BoundedDecoder(ImageLimits(formats=KNOWN_FORMATS)) as decoder:
        assert {name: outcome(decoder, files[name].data) for name in expected} == expected
        assert outcome(decoder, tiff(3) * 1000) == "undecodable"
        assert outcome(decoder, b"BM" + b"\xff" * 100) == "truncated"
        assert outcome(decoder, b"GIF89a" + b"\xff" * 100) == "undecodable"
        assert outcome(decoder, b"\0\0\0\x18ftypavif" + b"\xff" * 100) == "undecodable"


def test_hostile__a_folder_of_them_is_read_to_its_end(tmp_path: Path, decoder: BoundedDecoder) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    expected = write_folder(folder)
    assert outcomes(FolderSource(str(folder)), decoder) == {name: {reason} for name, reason in expected.items()}


def test_hostile__a_tar_of_them_is_read_to_its_end(tmp_path: Path, decoder: BoundedDecoder) -> None:
    path = tmp_path / "corpus.tar"
    expected = write_tar(path)
    found = outcomes(TarSource(str(path)), decoder)
    assert found == {name: {reason} for name, reason in expected.items()}
