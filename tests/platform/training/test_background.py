import threading

import pytest

from heliostat.errors import FencedError, TrainingFailedError
from heliostat.training.background import Background


def test_background__does_one_piece_at_a_time() -> None:
    background, gate = Background("saving"), threading.Event()
    assert not background.is_busy
    background.start(gate.wait)
    assert background.is_busy
    background.wait(0.01)
    assert background.is_busy
    with pytest.raises(RuntimeError, match="saving is busy"):
        background.start(gate.wait)
    gate.set()
    background.wait(10)
    assert not background.is_busy
    assert background.failure is None


def _fail(error: Exception) -> None:
    raise error


def test_background__keeps_the_first_error() -> None:
    background, error = Background("saving"), FencedError("a newer attempt holds the lease", "Stop")
    for each in (error, ValueError("later")):
        background.start(lambda each=each: _fail(each))  # type: ignore[misc]
        background.wait(10)
    assert background.failure is error


def test_background__names_what_nobody_foresaw() -> None:
    background = Background("saving")
    background.start(lambda: _fail(MemoryError("no room")))
    background.wait(10)
    assert isinstance(background.failure, TrainingFailedError)
    assert "saving failed: MemoryError: no room" in str(background.failure)
