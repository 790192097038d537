from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.checkpoint import writer
from heliostat.checkpoint.format import CHUNK_BYTES, CheckpointManifest, StateSlice, checkpoint_folder, manifest_fault
from heliostat.checkpoint.log import CheckpointEntry, CommitLog
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.verify import newest_good
from heliostat.errors import CorruptCheckpointError, IncompatibleCheckpointError
from heliostat.storage import Store
from heliostat.storage.local import LocalStore

Save = Callable[..., CheckpointEntry]
State = dict[tuple[str, str], torch.Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]


def _manifest(store: Store, shards: list[list[StateSlice]], tensors: dict[str, int]) -> CheckpointManifest:
    records = [writer.write_shard(store, checkpoint_folder(1, 1), rank, slices) for rank, slices in enumerate(shards)]
    return CheckpointManifest(
        step=1,
        attempt=1,
        world_size=max(1, len(shards)),
        shards=tuple(records),
        tensors=tensors,
        counters={},
        digest_of_ids="",
    )


@st.composite
def _cut_states(draw: st.DrawFn) -> tuple[State, list[list[StateSlice]]]:
    """Tensors of several types, each cut at random places, the pieces dealt to W ranks at random."""
    world_size = draw(st.integers(1, 5))
    state: State = {}
    shards: list[list[StateSlice]] = [[] for _ in range(world_size)]
    for index in range(draw(st.integers(1, 4))):
        numel = draw(st.integers(0, 60))
        dtype = draw(st.sampled_from(DTYPES))
        values = torch.randint(-100, 100, (numel,), generator=torch.Generator().manual_seed(index)).to(dtype)
        key = (draw(st.sampled_from(["fp32", "exp_avg"])), f"layer.{index}")
        state[key] = values
        cuts = sorted({0, numel, *draw(st.lists(st.integers(0, numel), max_size=6))})
        for start, stop in zip(cuts, cuts[1:] or [numel], strict=False):
            rank = draw(st.integers(0, world_size - 1))
            shards[rank].append(StateSlice(*key, start, values[start:stop]))
    return state, shards


@settings(deadline=None, max_examples=60)
@given(written=_cut_states(), readers=st.integers(1, 7), chunk_bytes=st.sampled_from([16, 64, 1000, CHUNK_BYTES]))
def test_read__gives_any_number_of_ranks_what_any_number_wrote(
    written: tuple[State, list[list[StateSlice]]], readers: int, chunk_bytes: int
) -> None:
    state, shards = written
    tensors = {f"{kind}|{parameter}": len(values) for (kind, parameter), values in state.items()}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", chunk_bytes)  # so that small tensors span many chunks
        store = LocalStore(Path(folder))
        manifest = _manifest(store, shards, tensors)
        assert manifest_fault(manifest) is None
        reader = CheckpointReader(store, CheckpointManifest.model_validate_json(manifest.model_dump_json()))
        for (kind, parameter), values in state.items():
            share = -(-len(values) // readers)
            bounds = [(min(rank * share, len(values)), min((rank + 1) * share, len(values))) for rank in range(readers)]
            parts = [reader.read(kind, parameter, start, stop) for start, stop in bounds]
            assert all(part.dtype == values.dtype for part in parts)
            assert torch.equal(torch.cat(parts), values)
            assert torch.equal(reader.read_full(kind, parameter), values)


def test_read__assembles_from_overlapping_slices(store: Store) -> None:
    values = torch.arange(20.0)
    cuts = [(8, 20), (0, 10), (2, 4), (5, 9)]
    shards = [[StateSlice("m", "a", start, values[start:stop])] for start, stop in cuts]
    reader = CheckpointReader(store, _manifest(store, shards, {"m|a": 20}))
    for start in range(20):
        for stop in range(start, 21):
            assert torch.equal(reader.read("m", "a", start, stop), values[start:stop])


def test_read__fetches_only_the_chunks_it_needs_and_each_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(3 * CHUNK_BYTES // 4, dtype=torch.int32)
    manifest = _manifest(store, [[StateSlice("m", "a", 0, values)]], {"m|a": len(values)})
    fetched: list[tuple[int, int | None]] = []
    get = LocalStore.get

    def spy(self: LocalStore, key: str, start: int = 0, end: int | None = None) -> bytes:
        fetched.append((start, end))
        return get(self, key, start, end)

    monkeypatch.setattr(LocalStore, "get", spy)
    reader = CheckpointReader(store, manifest)
    middle = CHUNK_BYTES // 4 + 1000
    for offset in (0, 500, 1000):
        part = reader.read("m", "a", middle + offset, middle + offset + 500)
        assert torch.equal(part, values[middle + offset : middle + offset + 500])
    assert fetched == [(CHUNK_BYTES, 2 * CHUNK_BYTES)]


def test_read__names_tensors_and_ranges_that_the_checkpoint_does_not_have(store: Store, save: Save) -> None:
    log = CommitLog(store)
    save(store, log, log.acquire_lease("a"), 10)
    choice = newest_good(store, log.read())
    assert choice is not None
    reader = CheckpointReader(store, choice.manifest)
    assert reader.numel("fp32", "head.bias") == 7
    with pytest.raises(IncompatibleCheckpointError, match=r"HS-CKPT-002.*holds no fp32.neck.bias"):
        reader.read_full("fp32", "neck.bias")
    for start, stop in ((0, 8), (-1, 2), (3, 2)):
        with pytest.raises(IncompatibleCheckpointError, match=r"fp32.head.bias has 7 elements"):
            reader.read("fp32", "head.bias", start, stop)


def test_read__names_what_is_in_no_shard(store: Store) -> None:
    pieces = [StateSlice("m", "a", 0, torch.zeros(3)), StateSlice("m", "a", 5, torch.zeros(5))]
    reader = CheckpointReader(store, _manifest(store, [pieces], {"m|a": 10, "m|b": 1}))
    assert len(reader.read("m", "a", 6, 10)) == 4
    with pytest.raises(CorruptCheckpointError, match=r"elements \[3, 10\) of m.a are in no shard"):
        reader.read_full("m", "a")
    with pytest.raises(CorruptCheckpointError, match=r"elements \[4, 5\) of m.a are in no shard"):
        reader.read("m", "a", 4, 5)
    with pytest.raises(CorruptCheckpointError, match=r"m.b is stored as nothing"):
        reader.read_full("m", "b")


def test_read__refuses_a_tensor_of_two_types(store: Store) -> None:
    pieces = [StateSlice("m", "a", 0, torch.zeros(3)), StateSlice("m", "a", 3, torch.zeros(3).double())]
    reader = CheckpointReader(store, _manifest(store, [pieces], {"m|a": 6}))
    with pytest.raises(CorruptCheckpointError, match=r"stored as F32, F64"):
        reader.read_full("m", "a")


def test_read__is_safe_for_threads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 64)  # many more chunks than are cached
    values = torch.arange(3000.0)
    reader = CheckpointReader(store, _manifest(store, [[StateSlice("m", "a", 0, values)]], {"m|a": 3000}))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: reader.read("m", "a", start, start + 30), range(0, 3000, 30)))
    assert torch.equal(torch.cat(parts), values)
