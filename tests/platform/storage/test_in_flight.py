import threading
from collections.abc import Iterator

import pytest

from heliostat.storage.in_flight import map_in_flight


def test_map_in_flight__keeps_the_order_and_never_runs_far_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for expected, found in enumerate(map_in_flight(lambda number: number * 2, items(), threads=3)):
        assert found == expected * 2
        assert taken <= expected + 2 * 3
    assert taken == 50


def test_map_in_flight__works_on_several_at_once() -> None:
    together = threading.Barrier(3)
    assert list(map_in_flight(lambda _: together.wait(timeout=30) >= 0, range(6), threads=3)) == [True] * 6


def test_map_in_flight__an_error_comes_in_its_turn() -> None:
    results = map_in_flight(lambda number: 6 // (2 - number), range(9), threads=2)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
