"""The child process of ``bounded.py``: decodes images that nobody vouches for, one after the other.

Requests come on standard input, answers go to standard output, both as frames: a word, a length, so many bytes. Before
the first one the pipes are moved away from their usual numbers, so that nothing a codec prints can look like an answer.
The only argument is a JSON object, see ``Bounds``. It ends when its input does, which is when its parent dies.
"""

import json
import math
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from heliostat.data.images import ImageLimits, inspect, too_many_bytes
from heliostat.data.rejection import Reason
from heliostat.data.resizing import shrunken
from heliostat.errors import RejectedImageError

FRAME = struct.Struct("<IQ")
"""A word and the length of what follows. The word of a request is the short side to shrink to, 0 to inspect."""
READY, DONE, REJECTED = 0x48454C49, 1, 2
"""The words of answers. ``READY`` comes once, at the start, and is long enough not to come by chance."""
OUT_OF_MEMORY_STATUS = 99
"""Exit status: there was too little memory to decode, or even to receive, the image."""

_PIPE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may do. Memory is address space beyond what the interpreter and the codecs take by themselves."""

    limits: ImageLimits
    memory_bytes: int
    cpu_s: float

    def to_json(self) -> str:
        """One line for the command line."""
        return json.dumps(asdict(self) | {"limits": asdict(self.limits) | {"formats": sorted(self.limits.formats)}})

    @classmethod
    def from_json(cls, text: str) -> "Bounds":
        """The reverse of ``to_json``."""
        content = json.loads(text)
        limits = content.pop("limits")
        return cls(ImageLimits(**limits | {"formats": frozenset(limits["formats"])}), **content)


def perform(short_side_px: int, data: bytes, limits: ImageLimits) -> bytes:
    """The answer to one request: the smaller image, or what ``inspect`` says as JSON.

    Raises:
        RejectedImageError: as ``inspect``; or the smaller image has more bytes than an image may have.
    """
    info = inspect(data, limits)
    if not short_side_px:
        return json.dumps(asdict(info)).encode()
    smaller = shrunken(data, short_side_px)
    if len(smaller) > limits.max_bytes:
        raise too_many_bytes(len(smaller), limits)
    return smaller


def main(perform: Callable[[int, bytes, ImageLimits], bytes] = perform) -> None:
    """Answer requests until the input ends."""
    requests, answers = _take_pipes()
    bounds = Bounds.from_json(sys.argv[1])
    _give_up_rights(bounds)
    os.dup2(0, 2)  # until here an error was of interest to the parent; codecs say much that is not
    _write(answers, READY, b"")
    while header := requests.read(FRAME.size):
        short_side_px, size_bytes = FRAME.unpack(header)
        _allow_cpu_time(bounds.cpu_s)
        try:
            _write(answers, DONE, perform(short_side_px, requests.read(size_bytes), bounds.limits))
        except RejectedImageError as error:
            if error.reason == Reason.TOO_MUCH_MEMORY:
                os._exit(OUT_OF_MEMORY_STATUS)
            _write(answers, REJECTED, json.dumps([error.reason, error.fact]).encode())
        except MemoryError:
            os._exit(OUT_OF_MEMORY_STATUS)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    requests, answers = os.fdopen(os.dup(0), "rb", _PIPE_BYTES), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    return requests, answers


def _give_up_rights(bounds: Bounds) -> None:
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    allowed = {resource.RLIMIT_AS: used_bytes + bounds.memory_bytes, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, limit in allowed.items():
        limit = _at_most_inherited(kind, limit)
        resource.setrlimit(kind, (limit, limit))


def _allow_cpu_time(cpu_s: float) -> None:
    """From now on; beyond it the kernel sends SIGXCPU, which ends the process even if its parent is gone."""
    soft_s = _at_most_inherited(resource.RLIMIT_CPU, math.ceil(time.process_time() + cpu_s))
    resource.setrlimit(resource.RLIMIT_CPU, (soft_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _at_most_inherited(kind: int, limit: int) -> int:
    """Hard limits (``ulimit``, a batch system's) can only be lowered: asking for more is an error, not a wish."""
    hard = resource.getrlimit(kind)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def _write(answers: BinaryIO, word: int, content: bytes) -> None:
    answers.write(FRAME.pack(word, len(content)))
    answers.write(content)
    answers.flush()


if __name__ == "__main__":
    main()
