"""A decoder child that fails as codecs do, on images that end in a word for it. For ``BoundedDecoder(module=MODULE)``.

What follows the end of a JPEG is no part of it, so the same bytes are a good image to the real child. The child finds
this module if PYTHONPATH names ``tests``.
"""

import os
import signal
import time
from pathlib import Path

from heliostat.data import decoder_child
from heliostat.data.images import ImageLimits

MODULE = "support.failing_decoder"
ABORT, SEGFAULT, KILLED, EXIT = b"!abort", b"!segfault", b"!killed", b"!exit"
SLEEP, SPIN, EAT, GARBAGE, CHATTER = b"!sleep", b"!spin", b"!eat", b"!garbage", b"!chatter"
ONCE = b"!once:"
"""Followed by a path: aborts if nothing is there, and leaves a link."""

_SIGNALS = {SEGFAULT: signal.SIGSEGV, KILLED: signal.SIGKILL}


def perform(short_side_px: int, data: bytes, limits: ImageLimits) -> bytes:
    """The real answer, if nothing happens before."""
    _, once, path = data.rpartition(ONCE)
    if once and not Path(os.fsdecode(path)).is_symlink():
        Path(os.fsdecode(path)).symlink_to("seen")  # a link, because the child may not write files
        os.abort()
    word = data[data.rfind(b"!") :]
    if word in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[word])
    if word == ABORT:
        os.abort()
    if word == EXIT:
        os._exit(3)
    if word == SLEEP:
        time.sleep(600)
    while word == SPIN:
        pass
    if word == EAT:
        bytearray(limits.max_bytes * 100)
    if word == GARBAGE:
        return b"nonsense"
    if word == CHATTER:
        os.write(1, b"a codec says something" * 1000)
        os.write(2, b"and complains" * 100_000)
    return decoder_child.perform(short_side_px, data, limits)


if __name__ == "__main__":
    decoder_child.main(perform)
