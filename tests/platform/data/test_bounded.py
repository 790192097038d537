import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import failing_decoder
from support.failing_decoder import ABORT, CHATTER, EAT, EXIT, GARBAGE, KILLED, ONCE, SEGFAULT, SLEEP, SPIN
from support.hostile import PHOTO, encode

from heliostat.data.bounded import BoundedDecoder, cause_of_death
from heliostat.data.decoder_child import Bounds
from heliostat.data.images import ImageInfo, ImageLimits, inspect
from heliostat.errors import DecoderNotStartedError, RejectedImageError

JPEG = encode(PHOTO, "JPEG")
INFO = ImageInfo(96, 64, "JPEG")
MEMORY_BYTES = 2**28
SMALL_LIMITS = ImageLimits(max_side_px=100, max_pixels=8000, formats=frozenset({"JPEG"}))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[BoundedDecoder]:
    """A decoder whose child fails on request, with a second of CPU time and two by the clock."""
    monkeypatch.setenv("PYTHONPATH", str(Path(failing_decoder.__file__).parents[1]))
    with BoundedDecoder(memory_bytes=MEMORY_BYTES, timeout_s=0.5, module=failing_decoder.MODULE) as decoder:
        yield decoder


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[BoundedDecoder]:
    """A decoder whose child sends every image back as its answer, whatever was asked."""
    code = "from heliostat.data.decoder_child import main\nmain(lambda short_side_px, data, limits: data)\n"
    (tmp_path / "echoing_child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with BoundedDecoder(SMALL_LIMITS, module="echoing_child") as decoder:
        yield decoder


def pids_of_children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()}


@pytest.mark.parametrize(
    ("word", "reason", "fact"),
    [
        (ABORT, "decoder-crashed", "its decoder ended with SIGABRT, 2 times"),
        (SEGFAULT, "decoder-crashed", "its decoder ended with SIGSEGV, 2 times"),
        (EXIT, "decoder-crashed", "its decoder ended with status 3, 2 times"),
        (GARBAGE, "decoder-crashed", "its decoder gave no sensible answer, 2 times"),
        (KILLED, "too-much-memory", "decoding it takes more memory than allowed, 2 times"),
        (EAT, "too-much-memory", "decoding it takes more memory than allowed, 2 times"),
        (SPIN, "too-slow", "decoding it takes more CPU time than allowed, 2 times"),
        (SLEEP, "too-slow", "decoding it takes too long by the clock, 2 times"),
    ],
)
def test_bounded__an_image_that_fells_its_decoder_is_named_and_the_next_one_is_read(
    failing: BoundedDecoder, word: bytes, reason: str, fact: str
) -> None:
    assert failing.inspect(JPEG) == INFO
    with pytest.raises(RejectedImageError) as caught:
        failing.inspect(JPEG + word)
    assert (caught.value.reason, caught.value.fact) == (reason, fact)
    assert failing.inspect(JPEG) == INFO
    assert failing.resize(JPEG, 32) != JPEG


def test_bounded__a_crash_that_does_not_come_again_costs_nothing(failing: BoundedDecoder, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert failing.inspect(JPEG + ONCE + os.fsencode(mark)) == INFO
    assert mark.is_symlink()  # it did crash


def test_bounded__what_codecs_print_is_no_answer(failing: BoundedDecoder) -> None:
    for _ in range(3):
        assert failing.inspect(JPEG + CHATTER) == INFO


def test_bounded__one_child_serves_many_images_and_ends_with_the_decoder() -> None:
    before = pids_of_children()
    with BoundedDecoder() as decoder:
        assert pids_of_children() == before
        decoder.inspect(JPEG)
        (child,) = pids_of_children() - before
        for data in (JPEG, b"", JPEG[:-300], JPEG):  # refusals are no crashes
            try:
                assert decoder.inspect(data) == INFO
            except RejectedImageError as error:
                assert error.reason in ("empty", "truncated")
        assert pids_of_children() - before == {child}
    assert pids_of_children() == before


def test_bounded__refuses_as_inspect_does_in_the_same_words() -> None:
    limits = ImageLimits(max_bytes=len(JPEG) + 100, max_side_px=90, formats=frozenset({"JPEG", "TIFF"}))
    with BoundedDecoder(limits) as decoder:
        for data in (b"", JPEG, b"hello", encode(PHOTO, "PNG"), JPEG + bytes(101), encode(PHOTO, "TIFF")):
            with pytest.raises(RejectedImageError) as here:
                inspect(data, limits)
            with pytest.raises(RejectedImageError) as there:
                decoder.inspect(data)
            assert (there.value.reason, there.value.fact) == (here.value.reason, here.value.fact)


def test_bounded__a_real_codec_that_runs_out_of_memory_is_named() -> None:
    photo = encode(PHOTO.resize((4000, 3000)), "JPEG", progressive=True)
    with BoundedDecoder(memory_bytes=24 * 2**20) as decoder:
        with pytest.raises(RejectedImageError) as caught:
            decoder.inspect(photo)
        assert caught.value.reason == "too-much-memory"
        assert decoder.inspect(JPEG) == INFO


def test_bounded__the_child_has_neither_secrets_nor_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    before = pids_of_children()
    with BoundedDecoder(memory_bytes=MEMORY_BYTES) as decoder:
        decoder.inspect(JPEG)
        (child,) = pids_of_children() - before
        folder = Path(f"/proc/{child}")
        assert b"canary" not in (folder / "environ").read_bytes()
        assert {str(name.readlink()).split(":")[0] for name in (folder / "fd").iterdir()} == {"pipe", "/dev/null"}
        limits = (folder / "limits").read_text()
        rows = {line[:25].strip(): line[26:].split()[:2] for line in limits.splitlines()}
        assert rows["Max core file size"] == ["0", "0"]
        assert rows["Max file size"] == ["0", "0"]
        assert MEMORY_BYTES < int(rows["Max address space"][1]) < MEMORY_BYTES + 2**29


def test_bounded__limits_that_the_child_inherits_are_kept() -> None:
    code = """
import os, pathlib, sys
from heliostat.data.bounded import BoundedDecoder
decoder = BoundedDecoder(memory_bytes=2**40)
image = sys.stdin.buffer.read()
assert decoder.inspect(image) == decoder.inspect(image)
print(pathlib.Path(f"/proc/{decoder._child._process.pid}/limits").read_text())
"""
    command = ["/bin/sh", "-c", 'ulimit -t 15; ulimit -v 4194304; exec "$@"', "sh", sys.executable, "-c", code]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    said = subprocess.run(command, input=JPEG, capture_output=True, env=environment, timeout=60)
    assert said.returncode == 0, said.stderr.decode()
    rows = {line[:25].strip(): line[26:].split()[:2] for line in said.stdout.decode().splitlines()}
    assert rows["Max cpu time"] == ["15", "15"]
    assert rows["Max address space"] == [str(2**32), str(2**32)]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"width": 96, "height": 0, "format": "JPEG"}',
        b'{"width": -96, "height": -64, "format": "JPEG"}',
        b'{"width": 101, "height": 64, "format": "JPEG"}',
        b'{"width": 100, "height": 81, "format": "JPEG"}',
        b'{"width": true, "height": 64, "format": "JPEG"}',
        b'{"width": 96.0, "height": 64, "format": "JPEG"}',
        b'{"width": NaN, "height": 64, "format": "JPEG"}',
        b'{"width": "96", "height": 64, "format": "JPEG"}',
        b'{"width": 96, "height": 64, "format": "PNG"}',
        b'{"width": 96, "height": 64, "format": ["JPEG"]}',
        b'{"width": 96, "height": 64}',
        b"[96, 64]",
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_bounded__an_answer_that_cannot_be_true_is_a_crash(answering: BoundedDecoder, answer: bytes) -> None:
    with pytest.raises(RejectedImageError) as caught:
        answering.inspect(answer)
    assert (caught.value.reason, caught.value.fact) == (
        "decoder-crashed",
        "its decoder gave no sensible answer, 2 times",
    )


def test_bounded__an_answer_that_can_be_true_is_taken(answering: BoundedDecoder) -> None:
    assert answering.inspect(b'{"width": 96, "height": 64, "format": "JPEG"}') == INFO
    assert answering.resize(JPEG, 9) == JPEG
    with pytest.raises(RejectedImageError, match="no sensible answer"):
        answering.resize(b"<html>", 9)


@pytest.mark.parametrize("word", [b"", SPIN])
def test_bounded__the_child_dies_with_its_parent(word: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(JPEG)
    code = """
import pathlib, sys, threading
from heliostat.data.bounded import BoundedDecoder
decoder = BoundedDecoder(timeout_s=1, module="support.failing_decoder")
image, word = map(pathlib.Path.read_bytes, map(pathlib.Path, sys.argv[1:]))
decoder.inspect(image)
print(decoder._child._process.pid, flush=True)
decoder.inspect(image + word)
threading.Event().wait()
"""
    (tmp_path / "word").write_bytes(word)
    environment = os.environ | {"PYTHONPATH": str(Path(failing_decoder.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "image"), str(tmp_path / "word")],
        stdout=subprocess.PIPE,
        env=environment,
    )
    with parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    give_up = time.monotonic() + 30
    while Path(f"/proc/{child}/exe").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/exe").exists()


def test_bounded__a_child_that_cannot_start_says_nothing_of_the_image() -> None:
    with BoundedDecoder(module="no_such_module") as decoder, pytest.raises(DecoderNotStartedError) as caught:
        decoder.inspect(JPEG)
    assert "No module named no_such_module" in str(caught.value)


def test_bounded__no_program_to_start_says_nothing_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with BoundedDecoder() as decoder, pytest.raises(DecoderNotStartedError, match="No such file or directory"):
        decoder.inspect(JPEG)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-signal.SIGXCPU, "too-slow"),
        (-signal.SIGKILL, "too-much-memory"),
        (99, "too-much-memory"),
        (-signal.SIGABRT, "decoder-crashed"),
        (-signal.SIGSEGV, "decoder-crashed"),
        (-signal.SIGILL, "decoder-crashed"),
        (0, "decoder-crashed"),
        (1, "decoder-crashed"),
    ],
)
def test_cause_of_death__names_the_reason(status: int, reason: str) -> None:
    assert cause_of_death(status)[0] == reason


def test_bounds__survive_the_command_line() -> None:
    bounds = Bounds(ImageLimits(max_bytes=5, max_ratio=2.5, formats=frozenset({"GIF"})), 7, 0.5)
    assert Bounds.from_json(bounds.to_json()) == bounds
