"""Snapshots in other processes' memory: one holder as an object, and several as the actors that they are."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import ray
import torch
from support.small_ray import small_ray

from heliostat.checkpoint.assembly import Draft
from heliostat.checkpoint.format import CHUNK_BYTES, CheckpointManifest, StateSlice
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.writer import write_shard
from heliostat.elastic.holders import (
    HeldSource,
    HeldTarget,
    Holder,
    Part,
    PartName,
    ensure_holders,
    find_parts,
    known_holders,
    remove_holders,
    take_over,
)
from heliostat.errors import CorruptCheckpointError, FencedError, ObjectNotFoundError, SnapshotLostError


def chunk(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def part(attempt: int, step: int, rank: int = 0) -> Part:
    return Part(PartName(attempt, step, rank), f"{attempt}/{step}/{rank}", "{}", "nonce")


def put(holder: Holder, each: Part, *texts: str) -> None:
    for index, text in enumerate(texts or ("bytes",)):
        holder.put(each.name.attempt, each.key, index, chunk(text))


def held(holder: Holder) -> list[str]:
    return [each.key for each in holder.parts()]


def test_holder__gives_back_what_was_put() -> None:
    holder, mine = Holder(), part(1, 10)
    put(holder, mine, "ab", "cd")
    assert held(holder) == []  # not before it is whole
    holder.seal(mine)
    assert holder.parts() == [mine]
    assert [bytes(holder.get(mine.key, index)) for index in (1, 0)] == [b"cd", b"ab"]
    assert holder.size_bytes() == 4


def test_holder__hears_that_the_run_goes_on() -> None:
    holder = Holder()
    holder._heard_at = forgotten_at = holder._heard_at - 1000
    holder.stay()
    assert holder._heard_at >= forgotten_at + 1000


@pytest.mark.parametrize(("key", "index"), [("1/10/0", 1), ("1/20/0", 0)])
def test_holder__has_nothing_out_of_range(key: str, index: int) -> None:
    holder = Holder()
    put(holder, part(1, 10))
    with pytest.raises(ObjectNotFoundError, match=f"no chunk {index} of {key}"):
        holder.get(key, index)


def test_holder__takes_chunks_in_order_only_and_the_first_begins_anew() -> None:
    holder, mine = Holder(), part(1, 10)
    put(holder, mine, "ab", "cd")
    with pytest.raises(SnapshotLostError, match="chunk 3 of 1/10/0 came after chunk 1"):
        holder.put(1, mine.key, 3, chunk("ef"))
    put(holder, mine, "xy")
    assert holder.size_bytes() == 2


def test_holder__seals_nothing_that_it_has_not() -> None:
    with pytest.raises(SnapshotLostError, match="no bytes of 1/10/0"):
        Holder().seal(part(1, 10))


def test_holder__refuses_older_attempts() -> None:
    holder, old = Holder(), part(1, 10)
    put(holder, old)
    put(holder, part(2, 10))
    with pytest.raises(FencedError, match="attempt 2 has taken over from attempt 1"):
        put(holder, part(1, 20))
    with pytest.raises(FencedError, match="attempt 2 has taken over from attempt 1"):
        holder.seal(old)
    assert held(holder) == []


def test_holder__keeps_the_last_two_snapshots() -> None:
    holder = Holder()
    for attempt, step in [(1, 10), (1, 20), (1, 30), (2, 15)]:
        for rank in (0, 1):
            put(holder, part(attempt, step, rank))
            holder.seal(part(attempt, step, rank))
    assert held(holder) == ["1/30/0", "1/30/1", "2/15/0", "2/15/1"]
    assert holder.size_bytes() == 4 * len("bytes")


@pytest.mark.parametrize(("resumed", "kept"), [((1, 10), ["1/10/0"]), ((1, 30), []), (None, [])])
def test_begin__keeps_only_what_is_resumed_from(resumed: tuple[int, int] | None, kept: list[str]) -> None:
    holder = Holder()
    for step in (10, 20):
        put(holder, part(1, step))
        holder.seal(part(1, step))
    put(holder, part(1, 25))  # its worker died before the end
    holder.begin(2, resumed)
    assert held(holder) == kept
    assert holder.size_bytes() == len(kept) * len("bytes")
    with pytest.raises(FencedError):
        put(holder, part(1, 30))


def test_begin__of_no_attempt_forgets_and_fences_as_before() -> None:
    holder = Holder()
    put(holder, part(3, 10))
    holder.seal(part(3, 10))
    holder.begin(0, None)
    assert held(holder) == []
    with pytest.raises(FencedError):
        put(holder, part(2, 10))


def test_forget__drops_what_is_not_whole_and_nothing_else() -> None:
    holder = Holder()
    put(holder, part(1, 10))
    holder.seal(part(1, 10))
    put(holder, part(1, 20))
    for step in (10, 20):
        holder.forget(part(1, step).key)
    assert held(holder) == ["1/10/0"]
    assert holder.size_bytes() == len("bytes")


@dataclass(frozen=True)
class Copies:
    """A snapshot of one rank whose shard takes two chunks, with two real holders."""

    holders: list[Any]
    draft: Draft
    manifest: CheckpointManifest
    values: torch.Tensor


class Flipping(Holder):
    """Memory that is not what it was."""

    def get(self, key: str, index: int) -> np.ndarray:
        data = super().get(key, index).copy()
        data[-1] ^= 1 if index else 0
        return data


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with small_ray():
        yield


@pytest.fixture(scope="module")
def copies(local_ray: None) -> Copies:
    node = ray.get_runtime_context().get_node_id()
    # Two on one node, under the names of two runs: a machine is one node.
    holders = [ensure_holders(run, [node])[node] for run in ("a", "b")]
    values = torch.arange(5 * 2**20, dtype=torch.float32)
    assert CHUNK_BYTES < values.nbytes < 2 * CHUNK_BYTES
    draft = Draft(10, 1, 1, {"master|w": len(values)}, {}, "")
    target = HeldTarget(holders, 1)
    record = write_shard(target, draft.folder, 0, [StateSlice("master", "w", 0, values)])
    manifest = draft.manifest([record])
    target.seal(Part(PartName(1, 10, 0), record.key, manifest.model_dump_json(), "nonce"))
    return Copies(holders, draft, manifest, values)


@pytest.mark.ray
def test_held_source__a_byte_that_is_another_one_is_corrupt(copies: Copies) -> None:
    node = ray.get_runtime_context().get_node_id()
    flipping = ray.remote(num_cpus=0)(Flipping).options(name=f"holder:flips:{node}", namespace="heliostat").remote()
    target = HeldTarget([flipping], 1)
    write_shard(target, copies.draft.folder, 0, [StateSlice("master", "w", 0, copies.values)])
    target.seal(Part(PartName(1, 10, 0), copies.manifest.shards[0].key, "{}", "nonce"))
    reader = CheckpointReader(HeldSource(find_parts([flipping])), copies.manifest)
    assert torch.equal(reader.read("master", "w", 0, 9), copies.values[:9])  # of the first chunk
    with pytest.raises(CorruptCheckpointError, match="are not those committed"):
        reader.read_full("master", "w")
    ray.kill(flipping)


@pytest.mark.ray
def test_held_target__refused_by_one_leaves_nothing_with_the_other(copies: Copies) -> None:
    first, second = copies.holders
    before = ray.get(second.size_bytes.remote())
    take_over([first], 5, (1, 10))
    target = HeldTarget([second, first], 4)
    with pytest.raises(SnapshotLostError, match="does not do its part"):
        write_shard(target, "other", 0, [StateSlice("master", "w", 0, copies.values[:9])])
    assert ray.get(second.size_bytes.remote()) == before


@pytest.mark.ray
def test_held_source__reads_from_who_is_left(copies: Copies) -> None:
    replicas = find_parts(copies.holders)
    assert [each.part.name for each in replicas] == [PartName(1, 10, 0)] * 2
    ray.kill(copies.holders[0])
    reader = CheckpointReader(HeldSource(replicas), copies.manifest)
    assert torch.equal(reader.read_full("master", "w"), copies.values)
    assert [each.holder for each in find_parts(copies.holders)] == copies.holders[1:]


@pytest.mark.ray
def test_remove_holders__ends_those_of_a_run(copies: Copies) -> None:
    remove_holders("b")
    deadline_s = time.monotonic() + 30
    while known_holders("b") and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert known_holders("b") == {}
    key = copies.manifest.shards[0].key
    with pytest.raises(ObjectNotFoundError, match="no holder has"):
        HeldSource([]).get(key)
