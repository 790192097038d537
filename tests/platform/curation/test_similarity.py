from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.curation.kmeans import normalised
from heliostat.curation.similarity import LOWEST, NO_ROW, UNIT, best_of, exact_similarities, in_units, units_of


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_exact_similarities__are_those_of_whole_numbers_in_any_batch(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = normalised(rng.normal(size=(9, width))).astype(np.float16)
    queries = normalised(rng.normal(size=(4, width))).astype(np.float16)
    candidates = rng.integers(-1, 9, size=(4, 5))
    found = exact_similarities(queries, base, candidates)
    for query in range(4):
        alone = exact_similarities(queries[query : query + 1], base, candidates[query : query + 1, ::-1])
        assert np.array_equal(alone[0, ::-1], found[query])
        for place, row in enumerate(candidates[query].tolist()):
            if row == NO_ROW:
                assert found[query, place] == LOWEST
                continue
            exact = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(queries[query], base[row], strict=True))
            assert found[query, place] == round(max(-1, min(1, exact)) * UNIT)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.45, 0.6, 0.99994])
def test_units_of__is_the_first_that_is_above(threshold: float) -> None:
    assert units_of(threshold) > threshold * UNIT >= units_of(threshold) - 1
    assert in_units(np.array([1.0]))[0] == UNIT


def test_best_of__the_most_similar_first_and_each_once() -> None:
    rows = np.array([[7, 3, 9, 3, NO_ROW]])
    near = np.array([[5, 8, 8, 8, LOWEST]], np.int16)
    best, similarity = best_of(rows, near, 4)
    assert best.tolist() == [[3, 9, 7, NO_ROW]]
    assert similarity.tolist() == [[8, 8, 5, LOWEST]]
    more, _ = best_of(rows, near, 7)
    assert more.tolist() == [[3, 9, 7, NO_ROW, NO_ROW, NO_ROW, NO_ROW]]
    fewer, _ = best_of(rows, near, 1)
    assert fewer.tolist() == [[3]]
