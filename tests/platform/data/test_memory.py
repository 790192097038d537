from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.memory import ByteLru


@given(
    max_bytes=st.integers(0, 20),
    uses=st.lists(st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 8)), max_size=40),
)
def test_byte_lru__keeps_the_last_used_within_the_bound(max_bytes: int, uses: list[tuple[str, int]]) -> None:
    """Compared with a plain list, most recently used last. Piece n has n bytes."""
    kept: ByteLru[bytes] = ByteLru(max_bytes, len)
    expected: list[int] = []
    for what, number in uses:
        if what == "get":
            found = kept.get(str(number))
            assert found == (bytes(number) if number in expected else None)
            if number in expected:
                expected = [*(other for other in expected if other != number), number]
        else:
            kept.put(str(number), bytes(number))
            if number not in expected and number <= max_bytes:
                expected.append(number)
            while sum(expected) > max_bytes:
                del expected[0]
        assert kept.held_bytes == sum(expected) <= max_bytes
