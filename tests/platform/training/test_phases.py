import time

import pytest
import torch

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_phase_clock__on_a_gpu_work_is_charged_to_the_phase_that_asked_for_it() -> None:
    clock = PhaseClock(torch.device("cuda"))
    left = torch.ones(8192, 8192, device="cuda")
    with clock.phase("teacher"):
        for _ in range(20):
            left @ left
    with clock.phase("student"):
        left.sum().item()  # the host waits here for the teacher's work
    seconds = clock.read()
    assert seconds["teacher"] > 10 * seconds["student"] > 0
