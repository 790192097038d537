import time

import pytest

from heliostat.training.phases import PhaseClock


def test_phase_clock__adds_up_until_it_is_read() -> None:
    clock = PhaseClock()
    start = time.perf_counter()
    for _ in range(2):
        with clock.phase("data"):
            time.sleep(0.01)
    with clock.phase("student"):
        pass
    elapsed = time.perf_counter() - start
    seconds = clock.read()
    assert set(seconds) == {"data", "student"}
    assert 0.02 <= seconds["data"] <= elapsed
    assert 0 <= seconds["student"] <= elapsed - seconds["data"]
    assert clock.read() == {}


def test_phase_clock__time_until_an_error_counts() -> None:
    clock = PhaseClock()
    with pytest.raises(KeyError), clock.phase("data"):
        raise KeyError
    assert list(clock.read()) == ["data"]
