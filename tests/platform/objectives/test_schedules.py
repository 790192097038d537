import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config.objective import ObjectiveConfig
from heliostat.config.training import TrainingConfig
from heliostat.objectives.schedules import cosine, peak_lr, values_at

OBJECTIVE = ObjectiveConfig()
SHORT = TrainingConfig(steps=125_000, slot_batch=64)


def test_peak_lr__grows_with_the_square_root_of_the_batch() -> None:
    assert peak_lr(SHORT) == pytest.approx(4e-3 * math.sqrt(2))


@given(
    start=st.floats(0, 1),
    base=st.floats(0, 1),
    end=st.floats(0, 1),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 200),
    step=st.integers(0, 300),
)
def test_cosine__stays_between_its_corners(
    start: float, base: float, end: float, warmup: int, steps: int, step: int
) -> None:
    value = cosine(step, start, base, end, warmup, steps)
    corners = (start, base) if step < warmup else (base, end)
    assert min(corners) - 1e-12 <= value <= max(corners) + 1e-12
    if step >= max(steps, warmup):
        assert value == end


def test_cosine__corners_are_exact() -> None:
    assert cosine(0, 0.1, 0.7, 0.2, 5, 20) == 0.1
    assert cosine(4, 0.1, 0.7, 0.2, 5, 20) == pytest.approx(0.7, rel=1e-15)
    assert cosine(5, 0.1, 0.7, 0.2, 5, 20) == pytest.approx(0.7, rel=1e-15)
    assert cosine(0, 0.1, 0.7, 0.2, 1, 20) == 0.7
    assert cosine(0, 0.1, 0.7, 0.2, 0, 20) == 0.7
    assert cosine(10, 0.1, 0.7, 0.2, 0, 20) == pytest.approx(0.45)


def test_values_at__a_run_shorter_than_its_warm_ups_still_warms_up() -> None:
    training = TrainingConfig(steps=10, global_batch=4, slot_batch=4, warmup_steps=100, freeze_prototypes_steps=0)
    values = [values_at(step, training, OBJECTIVE) for step in range(10)]
    assert values[9].lr == pytest.approx(peak_lr(training) * 9 / 99)
    assert values[9].teacher_temperature == pytest.approx(0.04 + 0.03 * 9 / 37499)
    assert not any(value.prototypes_frozen for value in values)
