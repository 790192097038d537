import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.draws import Draws, permutation, stream_key, units

MANY = 8000
KEYS = st.tuples(
    st.integers(0, 2**64), st.sampled_from(["crop", "mask", "rows"]), st.lists(st.integers(0, 2**70), max_size=4)
)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected


def test_draws__are_frozen_for_ever() -> None:
    draws = Draws(7, "crop", 3, 1)
    assert [draws.unit() for _ in range(3)] == [0.7264208763533514, 0.1823144367279671, 0.9259228152829189]
    assert draws.uniform(-1, 1) == 0.30393763568198373 * 2 - 1
    assert [draws.randint(0, 99) for _ in range(6)] == [45, 40, 34, 58, 20, 52]
    for _ in range(54):
        draws.unit()
    assert draws.unit() == 0.6813773661945348  # the 65th: a new block of words
    items = list(range(10))
    Draws(0, "mask", 10, 2).shuffle(items)
    assert items == [5, 7, 9, 1, 3, 2, 0, 4, 8, 6]
    assert stream_key(7, "rows", 5, 0) == 0xD50C2A8118E045EB56C1CF4037343AF
    assert permutation(12, 7, "rows", 5, 0).tolist() == [8, 11, 5, 9, 4, 0, 3, 10, 1, 6, 2, 7]


@pytest.mark.parametrize("size", [0, 1, 64, 65, 400])
def test_units__are_the_first_numbers_of_the_stream(size: int) -> None:
    draws = Draws(3, "crop", 8)
    assert units(size, 3, "crop", 8).tolist() == [draws.unit() for _ in range(size)]


def test_draws__units_are_uniform_and_independent_between_neighbouring_streams() -> None:
    streams = [Draws(1, "crop", position, 0) for position in range(2)]
    columns = np.array([[draws.unit() for draws in streams] for _ in range(MANY)])
    assert columns.min() >= 0
    assert columns.max() < 1
    for column in columns.T:
        # 15 degrees of freedom: below 39.3 in 99.94 % of all cases
        assert chi_square(np.histogram(column, 16, (0, 1))[0].tolist()) < 39.3
    within = np.corrcoef(columns[1:, 0], columns[:-1, 0])[0, 1]
    between = np.corrcoef(columns.T)[0, 1]
    assert max(abs(within), abs(between)) < 4 / math.sqrt(MANY)


def test_draws__first_numbers_of_many_streams_are_uniform() -> None:
    firsts = [Draws(0, "crop", position, view).unit() for position in range(1000) for view in range(4)]
    assert chi_square(np.histogram(firsts, 16, (0, 1))[0].tolist()) < 39.3


@given(low=st.integers(-1000, 1000), width=st.integers(0, 10**15))
def test_randint__stays_within_both_ends(low: int, width: int) -> None:
    draws = Draws(3, "range", low, width)
    assert all(low <= draws.randint(low, low + width) <= low + width for _ in range(20))


def test_randint__reaches_all_values_equally() -> None:
    draws = Draws(5, "dice")
    counts = Counter(draws.randint(1, 6) for _ in range(MANY))
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert chi_square(list(counts.values())) < 22.1  # 5 degrees of freedom, 99.95 %


def test_chance__takes_one_number_whatever_the_probability() -> None:
    certain, never = Draws(2, "coin"), Draws(2, "coin")
    assert all(certain.chance(1.0) for _ in range(500))
    assert not any(never.chance(0.0) for _ in range(500))
    assert certain.unit() == never.unit()


@given(KEYS, KEYS)
def test_stream_key__differs_with_every_part(
    one: tuple[int, str, list[int]], other: tuple[int, str, list[int]]
) -> None:
    keys = [stream_key(seed, purpose, *indices) for seed, purpose, indices in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
    seed, purpose, indices = one
    changed = {
        stream_key(seed, purpose, *indices),
        stream_key(seed + 1, purpose, *indices),
        stream_key(seed, purpose + "s", *indices),
        stream_key(seed, purpose, *indices, 0),
        *(stream_key(seed, purpose, *indices[:at], index + 1, *indices[at + 1 :]) for at, index in enumerate(indices)),
    }
    assert len(changed) == 4 + len(indices)


@given(size=st.integers(0, 500), seed=st.integers(0, 2**40))
def test_permutation__holds_every_number_once(size: int, seed: int) -> None:
    assert sorted(permutation(size, seed, "rows").tolist()) == list(range(size))


@pytest.mark.parametrize("kind", ["permutation", "shuffle"])
def test_permutation_and_shuffle__bring_every_order_equally_often(kind: str) -> None:
    def order(trial: int) -> tuple[int, ...]:
        if kind == "permutation":
            return tuple(permutation(4, 11, "rows", trial).tolist())
        items = list(range(4))
        Draws(11, "shuffle", trial).shuffle(items)
        return tuple(items)

    counts = Counter(order(trial) for trial in range(4800))
    assert len(counts) == 24
    assert chi_square(list(counts.values())) < 50  # 23 degrees of freedom, 99.9 %
