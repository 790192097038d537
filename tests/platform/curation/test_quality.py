import cv2
import numpy as np
import pytest

from heliostat.config.curate import FilterConfig
from heliostat.curation.quality import REASONS, Measures, measure, refused


def photograph(side: int = 300) -> np.typing.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 12, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)


def test_measure__tells_sharp_from_blurred_and_busy_from_flat() -> None:
    sharp = photograph()
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 6), np.uint8)
    flat = np.full((300, 300, 3), 90, np.uint8)
    found = measure([sharp, blurred, flat]).to_pydict()
    assert found["sharpness"][0] > 20 * found["sharpness"][1] > found["sharpness"][2] == 0
    assert found["entropy_bits"][2] == found["deviation"][2] == 0
    assert found["entropy_bits"][0] > 5


def test_measure__entropy_of_two_equally_frequent_greys_is_one_bit() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32] = 200
    found = measure([image]).to_pydict()
    assert found["entropy_bits"] == [pytest.approx(1.0)]
    assert found["deviation"] == [pytest.approx(100.0)]


def test_refused__names_the_first_rule_that_is_broken() -> None:
    config = FilterConfig(min_side_px=32, max_ratio=5, min_sharpness=10, min_entropy_bits=1, min_deviation=2)
    rows = [
        (31, 31, 0, 0, 0, "too small"),
        (200, 39, 50, 5, 50, "extreme ratio"),
        (40, 40, 50, 5, 1, "near-constant"),
        (40, 40, 50, 0.5, 20, "low entropy"),
        (40, 40, 9, 5, 20, "blurred"),
        (195, 39, 50, 5, 50, None),
    ]
    columns = [np.array([row[column] for row in rows], np.float32) for column in range(5)]
    measures = Measures(columns[0].astype(np.int32), columns[1].astype(np.int32), *columns[2:])
    found = [None if code < 0 else REASONS[code] for code in refused(measures, config).tolist()]
    assert found == [row[-1] for row in rows]
