import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.checkpoint.assembly import Draft
from heliostat.checkpoint.format import CHUNK_BYTES, ShardRecord, checkpoint_folder, shard_key
from heliostat.checkpoint.log import LeaseEntry, LogEntry
from heliostat.elastic.holders import Part, PartName, Replica
from heliostat.elastic.snapshots import newest_snapshot

WORLD = 3
LOG: list[LogEntry] = [LeaseEntry(attempt=attempt, holder="test", nonce=f"nonce {attempt}") for attempt in (1, 2)]


def replica(attempt: int, step: int, rank: int, *, world: int = WORLD, nonce: str = "", holder: str = "a") -> Replica:
    """A holder's word for one rank's part; nobody asks the holder for more here."""
    key = shard_key(checkpoint_folder(step, attempt), rank)
    record = ShardRecord(key=key, size_bytes=0, chunk_bytes=CHUNK_BYTES, chunk_sha256=(), slices=())
    manifest = Draft(step, attempt, world, {}, {}, "").manifest([record]).model_dump_json()
    lines = b"lines of rank 0" if rank == 0 else b""
    return Replica(Part(PartName(attempt, step, rank), key, manifest, nonce or f"nonce {attempt}", lines), holder)


def snapshot(attempt: int, step: int, *, nonce: str = "", ranks: tuple[int, ...] = (0, 1, 2)) -> list[Replica]:
    return [replica(attempt, step, rank, nonce=nonce) for rank in ranks]


@pytest.mark.parametrize(
    ("replicas", "found"),
    [
        ([], None),
        (snapshot(1, 10), (1, 10)),
        (snapshot(1, 10, ranks=(0, 2)), None),
        (snapshot(1, 10) + snapshot(1, 20), (1, 20)),
        (snapshot(1, 10) + snapshot(1, 20, ranks=(1, 2)), (1, 10)),  # the newest is not whole
        (snapshot(1, 30) + snapshot(2, 20), (2, 20)),  # of the later attempt, though of an earlier step
        (snapshot(1, 30) + snapshot(2, 40, ranks=(0,)), (1, 30)),
        (snapshot(1, 10, nonce="of a run that was deleted"), None),
        (snapshot(1, 10) + snapshot(1, 20, nonce="of a run that was deleted"), (1, 10)),
        (snapshot(1, 10) + snapshot(7, 20), (1, 10)),  # the log knows no such attempt
        ([*snapshot(1, 10, ranks=(0, 1)), replica(1, 10, 2, nonce="another")], None),
        ([replica(1, 10, 0, world=1), *snapshot(2, 5, ranks=(0, 1))], (1, 10)),  # workers then are not workers now
    ],
)
def test_newest_snapshot__table(replicas: list[Replica], found: tuple[int, int] | None) -> None:
    snapshot = newest_snapshot(replicas, LOG)
    assert (snapshot and (snapshot.manifest.attempt, snapshot.manifest.step)) == found


PLACES = st.tuples(st.sampled_from([1, 2]), st.sampled_from([10, 20, 30]))


@given(
    st.lists(
        st.tuples(PLACES, st.integers(0, WORLD - 1), st.sampled_from("ab"), st.booleans()), max_size=40, unique=True
    ),
    st.randoms(use_true_random=False),
)
def test_newest_snapshot__is_the_last_whole_one_of_this_run_in_whatever_order(
    parts: list[tuple[tuple[int, int], int, str, bool]], shuffled: random.Random
) -> None:
    replicas = [
        replica(*place, rank, holder=holder, nonce="" if is_ours else "another")
        for place, rank, holder, is_ours in parts
    ]
    shuffled.shuffle(replicas)
    whole = [
        place
        for place in {place for place, *_ in parts}
        if {rank for at, rank, _, is_ours in parts if at == place and is_ours} == set(range(WORLD))
    ]
    found = newest_snapshot(replicas, LOG)
    if not whole:
        assert found is None
        return
    assert found is not None
    attempt, step = max(whole)
    folder = checkpoint_folder(step, attempt)
    assert [shard.key for shard in found.manifest.shards] == [shard_key(folder, rank) for rank in range(WORLD)]
    ours = [each for each in replicas if each.part.name.step == step and each.part.name.attempt == attempt]
    assert list(found.replicas) == [each for each in ours if each.part.lease_nonce != "another"]
    assert found.lines == b"lines of rank 0"
