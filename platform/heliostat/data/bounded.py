"""Images are decoded in a process that may die of them.

A codec written in C that meets hostile bytes may crash, hang or ask for all the memory there is. Here that ends a child
process: it is started again, and the image, after a second try, is rejected like any other that cannot be used. The
child has bounded memory and CPU time, writes no files, and none of its parent's environment but what Python needs.
Bytes go through pipes as frames with a length (``decoder_child.py``); nothing is ever unpickled, and an answer that
cannot be true (no size within the limits, no known format) counts as a crash.

What this does not contain is a codec that is taken over rather than felled. The child runs as the same user: it may
read that user's files, signal its other processes, this one among them, start further ones and use the network. It may
also lie within the limits: a false size, or another image from ``resize``, of which only the first bytes are looked at.
Against that a deployment needs a container or a user of its own, without network, around the ingest.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self, TypeVar

from heliostat.data.codecs import KNOWN_FORMATS, format_of
from heliostat.data.decoder_child import DONE, FRAME, OUT_OF_MEMORY_STATUS, READY, REJECTED, Bounds
from heliostat.data.images import DEFAULT_LIMITS, ImageInfo, ImageLimits, too_many_bytes
from heliostat.data.rejection import Reason, rejected
from heliostat.errors import DecoderNotStartedError, RejectedImageError

DEFAULT_MEMORY_BYTES = 3 * 2**29
"""Enough for every image within the default limits: 64 megapixels of lossy WebP, the worst, take 1.1 GiB (measured)."""
DEFAULT_TIMEOUT_S = 20.0

_CHILD = "heliostat.data.decoder_child"
_TRIES = 2
_START_S = 120.0
_EXIT_S = 10.0
_WALL_PER_CPU_SECOND = 4.0
"""A busy machine is no slow image: the child's CPU time is what counts, and the clock only if it sleeps."""
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR")
_READ_BYTES = 2**20
_FACT_CHARACTERS = 1000

_Answer = TypeVar("_Answer")


class BoundedDecoder:
    """Inspects and shrinks untrusted images, at the price of one image for one that kills its decoder.

    The child is started with the first image, reused for the following ones, and ends with ``close``, with the context,
    or with this process. Not to be shared between threads.

    Args:
        limits: what ``inspect`` accepts.
        memory_bytes: what one child may allocate beyond its 40 MB of interpreter and libraries.
        timeout_s: CPU time of one image, rounded up to whole seconds by the kernel; four times that by the clock.
        module: what the child runs, for tests: a module that calls ``decoder_child.main``.
    """

    def __init__(
        self,
        limits: ImageLimits = DEFAULT_LIMITS,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        module: str = _CHILD,
    ) -> None:
        self._bounds = Bounds(limits, memory_bytes, timeout_s)
        self._module = module
        self._child: _Child | None = None

    def inspect(self, data: bytes) -> ImageInfo:
        """As ``images.inspect``.

        Raises:
            RejectedImageError: the reasons of ``images.inspect``; or the image has twice crashed the decoder, or used
                up its memory or its time.
            DecoderNotStartedError: no child process can be started, which says nothing about the image.
        """
        return self._ask(0, data, self._info)

    def resize(self, data: bytes, short_side_px: int) -> bytes:
        """As ``resizing.shrunken``, after ``images.inspect``.

        Raises:
            RejectedImageError, DecoderNotStartedError: as ``inspect``.
        """
        if short_side_px < 1:
            raise ValueError(f"an image cannot have a side of {short_side_px} px")
        return self._ask(short_side_px, data, _encoded)

    def close(self) -> None:
        """End the child process, if there is one; the next image starts another."""
        if self._child:
            self._child.end()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, answer: bytes) -> ImageInfo:
        limits = self._bounds.limits
        try:
            info = ImageInfo(**json.loads(answer))
        except (ValueError, TypeError, RecursionError) as error:
            raise _nonsense() from error
        sides = (info.width, info.height)
        if not all(type(side) is int and 1 <= side <= limits.max_side_px for side in sides):
            raise _nonsense()
        if info.width * info.height > limits.max_pixels or info.format not in sorted(limits.formats):
            raise _nonsense()
        return info

    def _ask(self, short_side_px: int, data: bytes, parse: Callable[[bytes], _Answer]) -> _Answer:
        if len(data) > self._bounds.limits.max_bytes:  # not worth sending
            raise too_many_bytes(len(data), self._bounds.limits)
        for _ in range(_TRIES):
            if self._child is None:
                self._child = _started(self._module, self._bounds)
            try:
                return parse(self._child.ask(short_side_px, data))
            except RejectedImageError:
                raise
            except _FailedError as error:
                failure = error
            except BaseException:  # an interrupt in the middle of a frame: the next answer would be to this request
                self.close()
                raise
            self.close()
        raise rejected(failure.reason, f"{failure}, {_TRIES} times")


class _FailedError(Exception):
    """The child did not answer, or not in time."""

    def __init__(self, reason: Reason, fact: str) -> None:
        super().__init__(fact)
        self.reason = reason


class _Child:
    """A running child process. ``end()`` ends it; so does this process when it ends."""

    def __init__(self, module: str, bounds: Bounds) -> None:
        self._bounds = bounds
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(  # noqa: S603 -- our own interpreter and module; the bounds are one argument
                [sys.executable, "-P", "-m", module, bounds.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent to deal with
            )
            self.end = weakref.finalize(self, _end, self._process)
            self._requests, self._answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
            try:
                self._expect_ready()
            except _FailedError as error:
                self.end()
                said.seek(0)
                raise _not_started(str(error), said.read()) from error

    def ask(self, short_side_px: int, data: bytes) -> bytes:
        """The answer to one request.

        Raises:
            RejectedImageError: what the child says of the image.
            _FailedError: the child is of no use any more.
        """
        deadline = time.monotonic() + _WALL_PER_CPU_SECOND * self._bounds.cpu_s
        self._send(FRAME.pack(short_side_px, len(data)) + data, deadline)
        word, answer = self._receive_frame(deadline)
        if word == DONE:
            return answer
        if word != REJECTED:
            raise _nonsense()
        try:
            reason, fact = json.loads(answer)
            error = rejected(Reason(reason), str(fact)[:_FACT_CHARACTERS])
        except (ValueError, TypeError, RecursionError) as broken:
            raise _nonsense() from broken
        raise error

    def _expect_ready(self) -> None:
        if self._receive_frame(time.monotonic() + _START_S) != (READY, b""):
            raise _nonsense()

    def _receive_frame(self, deadline: float) -> tuple[int, bytes]:
        word, size_bytes = FRAME.unpack(self._receive(FRAME.size, deadline))
        if size_bytes > self._bounds.limits.max_bytes:
            raise _nonsense()
        return word, self._receive(size_bytes, deadline)

    def _send(self, content: bytes, deadline: float) -> None:
        left = memoryview(content)
        while left:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                left = left[os.write(self._requests, left) :]
            except BrokenPipeError as error:
                raise self._ended() from error

    def _receive(self, size_bytes: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < size_bytes:
            self._wait(self._answers, select.POLLIN, deadline)
            part = os.read(self._answers, min(size_bytes - len(received), _READ_BYTES))
            if not part:
                raise self._ended()
            received += part
        return bytes(received)

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        waiting = select.poll()
        waiting.register(pipe, event)
        if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _FailedError(Reason.TOO_SLOW, "decoding it takes too long by the clock")

    def _ended(self) -> _FailedError:
        try:
            status = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return _nonsense()
        return _FailedError(*cause_of_death(status))


def _started(module: str, bounds: Bounds) -> _Child:
    try:
        return _Child(module, bounds)
    except (
        OSError
    ) as error:  # no memory for a process, no space for its messages: nothing that an image is to blame for
        raise _not_started(error.strerror or type(error).__name__, b"") from error


def cause_of_death(status: int) -> tuple[Reason, str]:
    """What the exit status of a child (negative: the signal) says of the image it was working on.

    A SIGKILL that nobody here sent is the kernel's, which was out of memory.
    """
    if status == -signal.SIGXCPU:
        return Reason.TOO_SLOW, "decoding it takes more CPU time than allowed"
    if status in (OUT_OF_MEMORY_STATUS, -signal.SIGKILL):
        return Reason.TOO_MUCH_MEMORY, "decoding it takes more memory than allowed"
    end = signal.Signals(-status).name if status < 0 else f"status {status}"
    return Reason.DECODER_CRASHED, f"its decoder ended with {end}"


def _nonsense() -> _FailedError:
    return _FailedError(Reason.DECODER_CRASHED, "its decoder gave no sensible answer")


def _encoded(answer: bytes) -> bytes:
    if format_of(answer) not in KNOWN_FORMATS:
        raise _nonsense()
    return answer


def _pipe(file: IO[bytes] | None) -> int:
    if file is None:
        raise AssertionError("Popen was asked for pipes")
    os.set_blocking(file.fileno(), False)
    return file.fileno()


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _not_started(fact: str, said: bytes) -> DecoderNotStartedError:
    lines = said.decode(errors="replace").strip().splitlines()
    return DecoderNotStartedError(
        f"the process that decodes images does not start ({fact}): {lines[-1] if lines else 'it says nothing'}",
        f"Run `{sys.executable} -m {_CHILD}` by hand to see why",
    )
