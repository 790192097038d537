import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heliostat.curation.dedup import edges_above, exact_duplicates, near_duplicates, touching
from heliostat.curation.similarity import LOWEST, NO_ROW

ROWS = 12
groups_of = st.lists(st.integers(0, 4), min_size=ROWS, max_size=ROWS)
flags_of = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)


def chain(groups: list[int]) -> np.typing.NDArray[np.int64]:
    """Each row and the next of its group."""
    pairs = [
        (row, min(later))
        for row in range(ROWS)
        if (later := [other for other in range(row + 1, ROWS) if groups[other] == groups[row]])
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


@given(groups_of, flags_of, st.lists(st.integers(1, 3), min_size=ROWS, max_size=ROWS))
def test_near_duplicates__one_of_each_component_stays_and_it_is_the_largest(
    groups: list[int], alive: list[bool], pixels: list[int]
) -> None:
    found = near_duplicates(ROWS, [chain(groups)], np.array(alive), np.array(pixels), np.zeros(ROWS, np.float32))
    kept = [row for row in range(ROWS) if alive[row] and row not in found.rows]
    for group in set(groups):
        mine = [row for row in range(ROWS) if groups[row] == group and alive[row]]
        staying = [row for row in mine if row in kept]
        assert len(staying) == min(1, len(mine))
        if mine:
            assert staying == [max(mine, key=lambda row: (pixels[row], -row))]
    for row, keeper in zip(found.rows, found.because_of, strict=True):
        assert groups[row] == groups[keeper]
        assert keeper in kept


def test_near_duplicates__of_equally_large_ones_the_best_stays() -> None:
    edges = np.array([[0, 1], [1, 2]])
    found = near_duplicates(3, [edges], np.ones(3, bool), np.full(3, 9), np.array([0.1, 0.7, 0.2], np.float32))
    assert (found.rows.tolist(), found.because_of.tolist()) == ([0, 2], [1, 1])


@given(groups_of, flags_of, st.sets(st.integers(0, ROWS - 1)))
def test_touching__drops_whole_components_and_no_reference(
    groups: list[int], alive: list[bool], references: set[int]
) -> None:
    found = touching(ROWS, [chain(groups)], np.array(alive), np.array(sorted(references), np.int64))
    touched = {groups[row] for row in references}
    assert found.rows.tolist() == [
        row for row in range(ROWS) if alive[row] and groups[row] in touched and row not in references
    ]
    for row, reference in zip(found.rows, found.because_of, strict=True):
        assert reference == min(other for other in references if groups[other] == groups[row])


def test_exact_duplicates__repeat_the_lowest_row() -> None:
    ids = np.array([b"a" * 32, b"b" * 32, b"a" * 32, b"a" * 32], "S32").view("V32")
    found = exact_duplicates(ids, np.arange(4))
    assert (found.rows.tolist(), found.because_of.tolist()) == ([2, 3], [0, 0])
    some = exact_duplicates(ids, np.array([1, 2, 3]))
    assert (some.rows.tolist(), some.because_of.tolist()) == ([3], [2])


def test_edges_above__takes_what_reaches_the_threshold() -> None:
    neighbours = np.array([[3, 4, NO_ROW], [0, 9, 8]])
    near = np.array([[100, 99, LOWEST], [250, 100, 3]], np.int16)
    forest = edges_above(np.array([0, 5]), neighbours, near, 100)
    assert {tuple(edge) for edge in forest.tolist()} == {(0, 3), (0, 5), (0, 9)}
