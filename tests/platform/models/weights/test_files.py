import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from heliostat.errors import UnreadableWeightsError
from heliostat.models.weights.files import FileKind, file_kind, read_safetensors


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, tmp_path / "whole", {"who": "test"})
    return tmp_path / "whole"


def test_file_kind__looks_at_the_bytes_and_not_at_the_name(whole: Path, tmp_path: Path) -> None:
    assert file_kind(whole.rename(tmp_path / "x.pth")) is FileKind.SAFETENSORS
    for name, modern in (("zip.safetensors", True), ("bare.safetensors", False)):
        torch.save({"a": torch.ones(1)}, tmp_path / name, _use_new_zipfile_serialization=modern)
        assert file_kind(tmp_path / name) is FileKind.PICKLE


def test_file_kind__a_header_whose_length_begins_like_a_pickle_is_none(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x80)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert file_kind(tmp_path / "x") is FileKind.SAFETENSORS
    assert read_safetensors(tmp_path / "x").tensors["a"].item() == 0.0


@pytest.mark.parametrize(
    "content", [b"", b"hello, world, this is text", b"\x08\x00\x00\x00\x00\x00\x00\x00", b"\xff" * 64]
)
def test_file_kind__anything_else_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UnreadableWeightsError, match=f"{len(content)} bytes. is neither safetensors nor") as caught:
        file_kind(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_read_safetensors__gives_tensors_and_metadata(whole: Path) -> None:
    content = read_safetensors(whole)
    assert content.metadata == {"who": "test"}
    assert content.tensors["a"].tolist() == list(range(6))


def header(**entry: object) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header() + bytes(15),
        header() + bytes(17),
        header(shape=[5]) + bytes(16),
        header(shape=[2**40, 2**40]) + bytes(16),
        header(data_offsets=[0, 2**60]) + bytes(16),
        header(data_offsets=[-1, 16]) + bytes(16),
        header(dtype="EVIL") + bytes(16),
        (50).to_bytes(8, "little") + b'{"a": [1, 2' + b" " * 80,
        (2).to_bytes(8, "little") + b"{}" + bytes(3),
    ],
)
def test_read_safetensors__a_hostile_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UnreadableWeightsError, match="x is broken: ") as caught:
        read_safetensors(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_read_safetensors__cut_off_anywhere_is_an_error(whole: Path) -> None:
    content = whole.read_bytes()
    for length in range(9, len(content), 7):
        whole.write_bytes(content[:length])
        with pytest.raises(UnreadableWeightsError):
            read_safetensors(whole)
