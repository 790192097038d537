import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from heliostat.curation.components import components, spanning_forest

NODES = 30
edges_of = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=60)


def walk(edges: list[tuple[int, int]]) -> list[int]:
    """The smallest node that can be reached from each, found by walking."""
    neighbours: dict[int, set[int]] = {node: {node} for node in range(NODES)}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    found = []
    for node in range(NODES):
        seen, waiting = {node}, [node]
        while waiting:
            new = neighbours[waiting.pop()] - seen
            seen |= new
            waiting += new
        found.append(min(seen))
    return found


def array(edges: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    return np.array(edges, np.int64).reshape(-1, 2)


@given(edges_of, st.integers(1, 7))
def test_components__are_those_of_a_walk_however_the_edges_are_divided(
    edges: list[tuple[int, int]], parts: int
) -> None:
    forests = [spanning_forest(array(edges[part::parts])) for part in range(parts)]
    assert components(NODES, forests).tolist() == walk(edges)


@given(edges_of)
def test_spanning_forest__has_fewer_edges_than_nodes_and_the_same_components(edges: list[tuple[int, int]]) -> None:
    forest = spanning_forest(array(edges))
    touched = {node for edge in edges for node in edge}
    assert len(forest) < max(1, len(touched))
    assert components(NODES, [forest]).tolist() == walk(edges)
