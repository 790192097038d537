import pickle
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from support.mortal_store import Fuse, Killed, MortalStore

from heliostat.checkpoint.format import CHUNK_BYTES, CheckpointManifest, StateSlice, checkpoint_folder
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease, live_checkpoints
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.retention import Keep, retire, sweep
from heliostat.checkpoint.verify import Choice, newest_good
from heliostat.checkpoint.writer import commit, write_shard
from heliostat.errors import CorruptCheckpointError, FencedError, ObjectExistsError
from heliostat.storage import Store, open_store

State = dict[tuple[str, str], torch.Tensor]
Save = Callable[..., CheckpointEntry]
FOLDER = checkpoint_folder(5, 1)


def _newest(store: Store) -> Choice:
    choice = newest_good(store, CommitLog(store).read())
    assert choice is not None
    return choice


def _assert_holds(store: Store, choice: Choice, state: State) -> None:
    reader = CheckpointReader(store, choice.manifest)
    for (kind, parameter), values in state.items():
        assert torch.equal(reader.read_full(kind, parameter), values)


def test_write_shard__is_a_safetensors_file(store: Store) -> None:
    tensors = {
        "fp32|a|0": torch.randn(5),
        "fp32|b|100": torch.randn(3).bfloat16(),
        "step|a|0": torch.tensor([7]),
        "mask|é|1": torch.tensor([True, False, True]),
        "fp32|empty|0": torch.empty(0),
        "fp64|a|0": torch.randn(4).double(),
    }
    names = [name.split("|") for name in tensors]
    slices = [
        StateSlice(kind, parameter, int(offset), values)
        for (kind, parameter, offset), values in zip(names, tensors.values(), strict=True)
    ]
    record = write_shard(store, FOLDER, 3, slices)
    loaded = safetensors.torch.load(store.get(f"{FOLDER}/rank-00003.safetensors"))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], values) for name, values in tensors.items())
    assert record.size_bytes == store.size(record.key)
    assert {f"{each.tensor}|{each.offset}": each.numel for each in record.slices} == {
        name: len(values) for name, values in tensors.items()
    }


def test_write_shard__hashes_every_chunk(store: Store) -> None:
    values = torch.arange(2 * CHUNK_BYTES // 4 + 100, dtype=torch.int32)
    record = write_shard(store, FOLDER, 0, [StateSlice("m", "a", 0, values)])
    assert len(record.chunk_sha256) == 3
    assert [record.chunk_range(2)[0], record.chunk_range(2)[1]] == [2 * CHUNK_BYTES, record.size_bytes]


def test_write_shard__of_a_rank_without_state_is_an_empty_file(store: Store) -> None:
    record = write_shard(store, FOLDER, 0, [])
    assert safetensors.torch.load(store.get(record.key)) == {}


def test_write_shard__takes_views_and_leaves_gradients_alone(store: Store) -> None:
    base = torch.arange(12.0, requires_grad=True)
    record = write_shard(store, FOLDER, 0, [StateSlice("m", "a", 0, base[::2])])
    assert torch.equal(safetensors.torch.load(store.get(record.key))["m|a|0"], torch.arange(0.0, 12.0, 2))


def test_write_shard__refuses_names_twice_and_unknown_types(store: Store) -> None:
    with pytest.raises(ValueError, match=r"m.a.0: twice"):
        write_shard(store, FOLDER, 0, [StateSlice("m", "a", 0, torch.zeros(1))] * 2)
    with pytest.raises(ValueError, match="complex64"):
        write_shard(store, FOLDER, 0, [StateSlice("m", "a", 0, torch.zeros(1, dtype=torch.complex64))])
    assert list(store.list()) == []


def test_commit__makes_it_exist_with_its_counters(store: Store, save: Save, state: Callable[[int], State]) -> None:
    log = CommitLog(store)
    entry = save(store, log, log.acquire_lease("a"), 1000, world_size=3)
    assert entry.manifest_key == "checkpoints/step-00001000/attempt-1/manifest.json"
    choice = _newest(store)
    assert choice.entry == entry
    assert choice.rejected == ()
    assert choice.manifest.counters == {"optimizer_step": 1000, "loss_scale": 65536.0, "dtype": "fp32"}
    assert choice.manifest.digest_of_ids == "digest-1000"
    _assert_holds(store, choice, state(1000))


@pytest.mark.s3
def test_commit__works_on_s3(s3_root: str, save: Save, state: Callable[[int], State]) -> None:
    store = open_store(s3_root)
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    for step in (10, 20, 30):
        save(store, log, lease, step, world_size=2)
    assert [entry.step for entry in retire(store, log, lease, Keep(2))] == [10]
    _assert_holds(store, _newest(store), state(30))
    assert {info.key.split("/")[1] for info in store.list("checkpoints/")} == {"step-00000020", "step-00000030"}


def test_commit__refuses_a_checkpoint_that_is_not_whole(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    shard = write_shard(store, FOLDER, 0, [StateSlice("m", "a", 0, torch.zeros(4))])
    whole = CheckpointManifest(
        step=5, attempt=1, world_size=1, shards=(shard,), tensors={"m|a": 4}, counters={}, digest_of_ids=""
    )
    with pytest.raises(CorruptCheckpointError, match=r"elements from 4 on of m.a"):
        commit(store, log, lease, whole.model_copy(update={"tensors": {"m|a": 5}}))
    store.delete(shard.key)
    with pytest.raises(CorruptCheckpointError, match=r"rank-00000.safetensors is missing"):
        commit(store, log, lease, whole)
    assert newest_good(store, log.read()) is None


def test_commit__of_a_zombie_neither_counts_nor_overwrites(
    store: Store, save: Save, state: Callable[[int], State]
) -> None:
    zombie_log = CommitLog(store)
    zombie = zombie_log.acquire_lease("a")
    save(store, zombie_log, zombie, 10)
    log = CommitLog(store)
    lease = log.acquire_lease("b")
    with pytest.raises(FencedError):
        save(store, zombie_log, zombie, 20)  # wakes before the new attempt has written anything
    save(store, log, lease, 20)
    kept = {info.key: store.get(info.key) for info in store.list()}
    with pytest.raises(FencedError):
        save(store, zombie_log, zombie, 30)
    with pytest.raises(ObjectExistsError, match="Take a new lease"):
        save(store, zombie_log, zombie, 10)
    with pytest.raises(FencedError):
        retire(store, zombie_log, zombie, Keep(1))
    assert sweep(store, zombie_log, zombie) == ()
    assert all(store.get(key) == data for key, data in kept.items())
    assert [entry.attempt for entry in live_checkpoints(CommitLog(store).read())] == [1, 2]
    _assert_holds(store, _newest(store), state(20))


def test_commit__again_after_a_failure_is_sound(store: Store, save: Save, state: Callable[[int], State]) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    save(store, log, lease, 10)
    manifest = _newest(store).manifest
    assert commit(store, log, lease, manifest).manifest_sha256 == _newest(store).entry.manifest_sha256
    assert [entry.step for entry in live_checkpoints(log.read())] == [10]
    with pytest.raises(ObjectExistsError):
        commit(store, log, lease, manifest.model_copy(update={"digest_of_ids": "another"}))
    _assert_holds(store, _newest(store), state(10))


def _attempt(store: Store, save: Save, steps: tuple[int, ...]) -> None:
    """What an attempt does to the store: lease, sweep, and for each step a checkpoint and a retirement."""
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    sweep(store, log, lease)
    for step in steps:
        save(store, log, lease, step)
        retire(store, log, lease, Keep(2))


def test_commit_protocol__survives_a_crash_between_any_two_writes(
    tmp_path_factory: pytest.TempPathFactory, save: Save, state: Callable[[int], State]
) -> None:
    crashes = 0
    while True:
        store = open_store(str(tmp_path_factory.mktemp("crash")))
        _attempt(store, save, (10,))
        try:
            _attempt(MortalStore(store, Fuse(crashes)), save, (20, 30, 40))
            break
        except Killed:
            crashes += 1
        committed = live_checkpoints(CommitLog(store).read())
        choice = _newest(store)
        assert choice.entry == committed[-1]
        assert choice.rejected == ()
        _assert_holds(store, choice, state(choice.entry.step))
        assert len(committed) <= 3

        _attempt(store, save, (50,))  # the next attempt cleans up and goes on
        live = live_checkpoints(CommitLog(store).read())
        _assert_holds(store, _newest(store), state(50))
        folders = {info.key.rpartition("/")[0] for info in store.list("checkpoints/")}
        assert folders == {entry.manifest_key.rpartition("/")[0] for entry in live}
        assert len(live) == 2
    # lease; 3 x (2 shards, 2 records, manifest, entry); retire 10 and 20, each an entry and 5 files
    assert crashes == 1 + 3 * 6 + 2 * 6


_WRITER = """
import sys
import torch
from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.retention import Keep, retire, sweep
from heliostat.storage import open_store

store = open_store(sys.argv[1])
log = CommitLog(store)
lease = log.acquire_lease("a process that will be killed")
sweep(store, log, lease)
step = 0
while True:
    step += 1
    values = torch.full((200_000,), float(step))
    draft = Draft(step, lease.attempt, 1, {"m|a": len(values)}, {}, "")
    write_part(store, draft, 0, [StateSlice("m", "a", 0, values)])
    assemble(store, log, lease, draft)
    retire(store, log, lease, Keep(2))
    print(step, flush=True)
"""


def test_commit_protocol__survives_sigkill(store: Store) -> None:
    for attempt, steps in ((1, 3), (2, 8)):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, store.url], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(steps)][-1]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        choice = _newest(store)
        assert choice.entry.attempt == attempt
        assert choice.entry.step >= acknowledged
        values = CheckpointReader(store, choice.manifest).read_full("m", "a")
        assert torch.equal(values, torch.full((200_000,), float(choice.entry.step)))


def test_lease__travels_to_other_processes(store: Store) -> None:
    lease = CommitLog(store).acquire_lease("a")
    assert pickle.loads(pickle.dumps(lease)) == lease == Lease(1, 1, lease.nonce)
