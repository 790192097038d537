import pickle
from pathlib import Path

import pytest
import torch

from heliostat.errors import UnreadableWeightsError
from heliostat.models.weights import foreign
from heliostat.models.weights.foreign import read_pickle


class Toucher:
    """Unpickled by Python itself, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


class Hello:
    """Unpickled by Python itself, this prints."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("hello",))


def test_read_pickle__joins_nested_names_and_leaves_out_optimizer_and_student(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    content = {
        "model": {"teacher.norm.bias": shared, "teacher.view": shared[1:3], "student.norm.bias": shared},
        "optimizer": {"state": {"exp_avg": shared}},
        "iteration": 7,
    }
    torch.save(content, tmp_path / "x.pth")
    found = read_pickle(tmp_path / "x.pth")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "model.teacher.norm.bias": [0, 1, 2, 3],
        "model.teacher.view": [1, 2],
    }


@pytest.mark.parametrize("modern", [True, False])
def test_read_pickle__nothing_that_a_file_asks_for_is_run(modern: bool, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"a": Toucher(touched)}, tmp_path / "x.pth", _use_new_zipfile_serialization=modern)
    with pytest.raises(UnreadableWeightsError, match=r"asks to run \S+, .*; nothing of it was run") as caught:
        read_pickle(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert not touched.exists()
    # The file is a weapon: whoever loads it as Python does is hit.
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert touched.exists()


def test_read_pickle__a_plain_pickle_that_runs_things_does_not(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Toucher(touched)))
    with pytest.raises(UnreadableWeightsError):
        read_pickle(tmp_path / "x.pth")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 not a zip", "cannot be read as a pickle of tensors: "),
        (pickle.dumps({"a": 1}), "no tensors|its pickle holds operation 149 that no file of tensors needs"),
    ],
)
def test_read_pickle__a_broken_file_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UnreadableWeightsError, match=reason) as caught:
        read_pickle(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_read_pickle__memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One number on disk that claims to be 32 GiB of them: copying it would need as much memory.
    torch.save({"a": torch.zeros(1).expand(2**33)}, tmp_path / "x.pth")
    monkeypatch.setattr(foreign, "_START_BYTES", 8 * 2**30)
    with pytest.raises(UnreadableWeightsError, match="memory"):
        read_pickle(tmp_path / "x.pth")


def test_read_pickle__time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    monkeypatch.setattr(foreign, "_START_S", 0.05)
    with pytest.raises(UnreadableWeightsError, match="longer than 0 s"):
        read_pickle(tmp_path / "x.pth")


def test_read_pickle__the_reader_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert "canary" not in foreign._environment().values()
    assert set(foreign._environment()) <= {
        "PATH",
        "LD_LIBRARY_PATH",
        "TMPDIR",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("builtin", [True, False])
def test_read_pickle__no_message_tells_how_to_run_a_hostile_file(protocol: int, builtin: bool, tmp_path: Path) -> None:
    hostile = Hello() if builtin else Toucher(tmp_path / "touched")
    (tmp_path / "x.pth").write_bytes(pickle.dumps(hostile, protocol))
    with pytest.raises(UnreadableWeightsError) as caught:
        read_pickle(tmp_path / "x.pth")
    text = str(caught.value)
    assert "it asks to run" in text or "its pickle holds operation" in text
    assert not any(word in text for word in ("Re-running", "PyTorch", "False", "can still be loaded", "trust"))
