"""Pickles of others, read in a process of their own.

A pickle is a program. ``weights_only`` refuses to run what is not tensor data, and should that ever fail, the process
that reads it has no secrets in its environment, little time and bounded memory.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from heliostat.errors import UnreadableWeightsError
from heliostat.models.weights.files import read_safetensors

_CHILD = Path(__file__).with_name("unpickle.py")
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
_START_S = 120.0
_BYTES_PER_S = 20e6
_START_BYTES = 16 * 2**30
"""Address space of Python with torch, whose CUDA builds map many gigabytes without using them."""
_COPIES = 6
"""How often the content may be in memory; what a file unpacks to beyond that is an attack."""
_REASON_CHARS = 200


def read_pickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a ``.pth`` or ``.bin`` file, nested dictionaries joined by dots, without optimizer and student.

    Raises:
        UnreadableWeightsError: It is no pickle of tensors, asks to run anything, or takes too much time or memory.
    """
    size_bytes = path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        limit_bytes = _START_BYTES + _COPIES * size_bytes
        command = [sys.executable, "-I", str(_CHILD), str(path.resolve()), str(target), str(limit_bytes)]
        try:
            child = subprocess.run(  # noqa: S603 -- our own interpreter and script; the path is one argument
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_S + size_bytes / _BYTES_PER_S,
            )
        except subprocess.TimeoutExpired as error:
            raise _unreadable(path, f"reading it took longer than {error.timeout:.0f} s") from error
        if child.returncode:
            raise _unreadable(path, _reason(child.stderr, child.returncode))
        return read_safetensors(target).tensors


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _reason(stderr: bytes, status: int) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    if status < 0 or not lines:
        return f"the process that read it ended with status {status}"
    # The words may come from the file itself: only printable ones, and not many.
    return "".join(character for character in lines[-1] if character.isprintable())[:_REASON_CHARS].rstrip(". ")


def _unreadable(path: Path, reason: str) -> UnreadableWeightsError:
    return UnreadableWeightsError(
        f"{path} cannot be read as a pickle of tensors: {reason}; nothing of it was run",
        "Ask for the weights as safetensors, or for a file that torch.load(weights_only=True) accepts",
    )
