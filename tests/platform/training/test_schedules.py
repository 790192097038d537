import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config.pretrain import ObjectiveConfig, TrainingConfig
from heliostat.training.schedules import cosine, peak_lr, values_at

OBJECTIVE = ObjectiveConfig()
SHORT = TrainingConfig(steps=125_000, slot_batch=64)
LONG = TrainingConfig(
    steps=625_000,
    global_batch=3072,
    slot_batch=64,
    base_lr=2e-4,
    warmup_steps=100_000,
    weight_decay_end=0.2,
    ema_momentum=0.994,
)

# Of the published code (its default recipe at a batch of 2048, and that of its largest model).
GOLDEN = [
    (SHORT, 0, (0.0, 0.03999999999999998, 0.992, 0.04), True),
    (SHORT, 1, (4.5258454672312835e-07, 0.040000000056848894, 0.9920000000012633, 0.0400008000213339), True),
    (SHORT, 1249, (0.0005652780988571873, 0.04008867709206282, 0.9920019706020459, 0.0409992266460439), True),
    (SHORT, 1250, (0.0005657306834039105, 0.040088819134168285, 0.992001973758537, 0.0410000266673778), False),
    (SHORT, 12499, (0.005656854249492381, 0.048808429160991096, 0.9921957428702443, 0.04999946665244406), False),
    (SHORT, 12500, (0.005656854249492381, 0.04880982706687231, 0.9921957739348194, 0.05000026667377797), False),
    (SHORT, 37499, (0.004995295744696713, 0.11419499471411165, 0.9936487776603136, 0.07), False),
    (SHORT, 100_000, (0.0006626092652889426, 0.36562305898749053, 0.9992360679774998, 0.07), False),
    (SHORT, 124_999, (1.0000011026379877e-06, 0.3999999999431511, 0.9999999999987367, 0.07), False),
    (LONG, 1249, (4.326706184368899e-06, 0.04000157660591755, 0.9940000591227219, 0.0409992266460439), True),
    (LONG, 37_500, (0.00012990510961876197, 0.04141701994170491, 0.9940531382478139, 0.07), False),
    (LONG, 100_001, (0.00034641016151068337, 0.04989565932202339, 0.9943710872245759, 0.07), False),
    (LONG, 312_500, (0.00022461079695703347, 0.12, 0.997, 0.07), False),
]


@pytest.mark.parametrize(("training", "step", "expected", "frozen"), GOLDEN)
def test_values_at__equal_the_published_schedules(
    training: TrainingConfig, step: int, expected: tuple[float, ...], frozen: bool
) -> None:
    values = values_at(step, training, OBJECTIVE)
    found = (values.lr, values.weight_decay, values.ema_momentum, values.teacher_temperature)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert values.prototypes_frozen == frozen


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
