import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import StoreUnreachableError
from heliostat.observe.segments import LINES_DROPPED, SegmentTail, SegmentWriter, encode_line, read_segments
from heliostat.storage import Store, open_store
from heliostat.storage.local import LocalStore

NEVER_S = 3600.0
"""A flush interval that no test waits for: only explicit flushes write."""


@dataclass(frozen=True)
class FaultyStore(LocalStore):
    """A local store whose creates fail on demand, before or after the object was written."""

    faults: set[str] = field(default_factory=set)

    def create(self, key: str, data: bytes) -> str:
        if "before" in self.faults:
            raise StoreUnreachableError("nothing answers", "Wait")
        version = super().create(key, data)
        if "after" in self.faults:
            raise StoreUnreachableError("the answer was lost", "Wait")
        return version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def faulty(tmp_path: Path) -> FaultyStore:
    return FaultyStore(tmp_path)


def numbers(store: Store, prefix: str = "s") -> list[int]:
    return [line["n"] for line in read_segments(store, prefix) if "n" in line]


def test_segment_writer__flushes_become_numbered_segments_in_order(store: Store) -> None:
    with SegmentWriter(store, "s", NEVER_S, common={"attempt": 3}) as writer:
        writer.write({"n": 1})
        writer.write({"n": 2})
        assert writer.flush()
        writer.write({"n": 3})
    assert [info.key for info in store.list("s/")] == ["s/00000000.jsonl", "s/00000001.jsonl"]
    assert list(read_segments(store, "s")) == [{"attempt": 3, "n": n} for n in (1, 2, 3)]


def test_segment_writer__writes_nothing_when_there_is_nothing(store: Store) -> None:
    with SegmentWriter(store, "s", NEVER_S) as writer:
        assert writer.flush()
    assert list(store.list("s/")) == []


def test_segment_writer__the_thread_flushes_by_itself(store: Store) -> None:
    with SegmentWriter(store, "s", 0.01) as writer:
        writer.write({"n": 1})
        deadline = time.monotonic() + 10
        while not numbers(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert numbers(store) == [1]


def test_segment_writer__continues_the_numbers_of_an_earlier_writer(store: Store) -> None:
    for n in (1, 2):
        with SegmentWriter(store, "s", NEVER_S) as writer:
            writer.write({"n": n})
    assert numbers(store) == [1, 2]


def test_segment_writer__two_writers_share_a_prefix_without_loss(store: Store) -> None:
    with SegmentWriter(store, "s", NEVER_S) as one, SegmentWriter(store, "s", NEVER_S) as two:
        for n in range(6):
            writer = one if n % 3 else two
            writer.write({"n": n})
            assert writer.flush()
    assert numbers(store) == list(range(6))


def test_segment_writer__is_thread_safe(store: Store) -> None:
    with SegmentWriter(store, "s", 0.001) as writer:

        def write_from(start: int) -> None:
            for n in range(start, start + 200):
                writer.write({"n": n})

        threads = [threading.Thread(target=write_from, args=(start,)) for start in (0, 200, 400, 600)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers(store)) == list(range(800))


def test_segment_writer__keeps_lines_while_the_store_fails(faulty: FaultyStore) -> None:
    faulty.faults.add("before")
    with SegmentWriter(faulty, "s", NEVER_S) as writer:
        writer.write({"n": 1})
        assert not writer.flush()
        writer.write({"n": 2})
        assert not writer.flush()
        faulty.faults.remove("before")
        assert writer.flush()
    assert numbers(faulty) == [1, 2]


def test_segment_writer__a_lost_answer_does_not_write_lines_twice(faulty: FaultyStore) -> None:
    with SegmentWriter(faulty, "s", NEVER_S) as writer:
        writer.write({"n": 1})
        faulty.faults.add("after")
        assert not writer.flush()
        faulty.faults.remove("after")
        writer.write({"n": 2})
        assert writer.flush()
    assert numbers(faulty) == [1, 2]


def test_segment_writer__a_full_buffer_drops_the_oldest_and_says_how_many(faulty: FaultyStore) -> None:
    with SegmentWriter(faulty, "s", NEVER_S, max_buffered_lines=3, common={"attempt": 1}) as writer:
        for n in range(8):
            writer.write({"n": n})
    gap, *kept = read_segments(faulty, "s")
    assert gap.pop("time_utc").endswith("Z")
    assert gap == {"type": LINES_DROPPED, "attempt": 1, "lines": 5}
    assert [line["n"] for line in kept] == [5, 6, 7]


def test_segment_writer__close_gives_up_and_says_how_much_is_lost(
    faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.faults.add("before")
    with SegmentWriter(faulty, "s", NEVER_S) as writer:
        writer.write({"n": 1})
        assert not writer.flush()
        writer.write({"n": 2})
    assert "2 lines of s are lost" in caplog.text


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.floats(), max_size=3),
        max_size=4,
    )
)
def test_encode_line__is_one_line_of_strict_json(line: dict[str, object]) -> None:
    encoded = encode_line(line)
    assert encoded.endswith(b"\n") and encoded.count(b"\n") == 1
    decoded = json.loads(encoded, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert decoded.keys() == line.keys()


def test_encode_line__foreign_values_become_plain_ones() -> None:
    line = {
        "a": np.float32(0.5),
        "odd\udc80": "\udc80",
        "b": float("nan"),
        "c": Path("x"),
        "d": np.array(float("inf")),
        "e": (1, 2),
    }
    assert json.loads(encode_line(line)) == {
        "a": 0.5,
        "odd\udc80": "\udc80",
        "b": None,
        "c": "x",
        "d": None,
        "e": [1, 2],
    }


def test_segment_tail__each_line_comes_once_over_all_streams(store: Store) -> None:
    tail = SegmentTail(store, "m")
    assert tail.poll() == []
    with SegmentWriter(store, "m/0001", NEVER_S) as first:
        first.write({"n": 1})
    assert tail.poll() == [{"n": 1}]
    with SegmentWriter(store, "m/0002", NEVER_S) as second:
        second.write({"n": 2})
        second.flush()
        second.write({"n": 3})
    assert tail.poll() == [{"n": 2}, {"n": 3}]
    assert tail.poll() == []
