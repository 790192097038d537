import fcntl
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.cache import ShardCache

PIECES = [bytes([number]) * (1000 * (number + 1)) for number in range(12)]
NAMES = [hashlib.sha256(piece).hexdigest() for piece in PIECES]


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "lock"}


@settings(max_examples=40)
@given(
    max_bytes=st.integers(500, 30_000),
    uses=st.lists(st.tuples(st.booleans(), st.integers(0, len(PIECES) - 1)), max_size=40),
)
def test_cache__gives_what_was_put_or_nothing_within_the_bound(
    max_bytes: int, uses: list[tuple[bool, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = ShardCache(tmp_path_factory.mktemp("cache"), max_bytes)
    for put, number in uses:
        if put:
            cache.put(NAMES[number], PIECES[number])
            assert (cache.get(NAMES[number]) is not None) == (len(PIECES[number]) <= max_bytes)
        assert cache.get(NAMES[number]) in (None, PIECES[number])
        assert sum(files(cache.folder).values()) <= max_bytes


def test_cache__the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 7_000)
    for number in (0, 1, 2):  # 1000, 2000, 3000 bytes
        cache.put(NAMES[number], PIECES[number])
    cache.get(NAMES[0])
    cache.put(NAMES[3], PIECES[3])  # 4000 bytes
    assert [number for number in range(4) if cache.get(NAMES[number])] == [0, 3]


@settings(max_examples=40)
@given(at=st.integers(0, 999), flip=st.integers(1, 255), cut=st.booleans())
def test_cache__a_damaged_file_is_dropped_and_can_be_put_again(
    at: int, flip: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = ShardCache(tmp_path_factory.mktemp("cache"), 10_000)
    cache.put(NAMES[0], PIECES[0])
    (file,) = [path for path in cache.folder.iterdir() if path.name != "lock"]
    data = bytearray(PIECES[0])
    data[at] ^= flip
    file.write_bytes(data[:at] if cut else data)
    assert cache.get(NAMES[0]) is None
    assert not file.exists()
    cache.put(NAMES[0], PIECES[0])
    assert cache.get(NAMES[0]) == PIECES[0]


def _use(folder: Path, max_bytes: int, seed: int) -> int:
    """Read through a cache as a reader does; how often it had what was asked for."""
    cache = ShardCache(folder, max_bytes)
    draws = random.Random(seed)
    hits = 0
    for _ in range(300):
        number = draws.randrange(len(PIECES))
        data = cache.get(NAMES[number])
        assert data in (None, PIECES[number])
        hits += data is not None
        if data is None:
            cache.put(NAMES[number], PIECES[number])
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody writes or evicts
            assert sum(files(folder).values()) <= max_bytes
    return hits


def test_cache__is_shared_by_processes_while_it_evicts(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        hits = list(pool.map(_use, [tmp_path] * 4, [30_000] * 4, range(4)))
    assert all(0 < count < 300 for count in hits)
    found = files(tmp_path)
    assert "unfinished" not in found
    assert sum(found.values()) <= 30_000
    cache = ShardCache(tmp_path, 30_000)
    assert all(cache.get(name.removesuffix(".group")) for name in found)


_WRITER = """
import hashlib, random, sys
from pathlib import Path
from heliostat.data.cache import ShardCache
cache = ShardCache(Path(sys.argv[1]), 40_000_000)
print("ready", flush=True)
for number in range(1_000_000):
    data = number.to_bytes(4, "little") * 1_000_000
    cache.put(hashlib.sha256(data).hexdigest(), data)
"""


def test_cache__a_process_killed_while_it_writes_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    for wait_s in (0.05, 0.12, 0.2):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        cache = ShardCache(tmp_path, 40_000_000)
        whole = [name.removesuffix(".group") for name in files(tmp_path) if name.endswith(".group")]
        assert whole
        assert all(hashlib.sha256(cache.get(name) or b"").hexdigest() == name for name in whole)
        cache.put(NAMES[0], PIECES[0])  # the dead process holds no lock
        assert cache.get(NAMES[0]) == PIECES[0]
    data = bytes(39_000_000)
    cache.put(hashlib.sha256(data).hexdigest(), data)  # making room removes what was half written
    assert sum(files(tmp_path).values()) <= 40_000_000
    assert "unfinished" not in files(tmp_path)


def test_cache__half_a_file_under_a_good_name_is_a_miss(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10_000)
    cache.put(NAMES[0], PIECES[0])
    (tmp_path / "unfinished").write_bytes(b"of a process that died")
    (tmp_path / f"{NAMES[1]}.group").write_bytes(PIECES[1][:500])
    (tmp_path / "lock").write_text("nonsense")
    assert cache.get(NAMES[1]) is None
    cache.put(NAMES[1], PIECES[1])
    assert (cache.get(NAMES[0]), cache.get(NAMES[1])) == (PIECES[0], PIECES[1])
    assert (tmp_path / "lock").read_text() == "3000"


def test_cache__a_full_disk_is_no_error(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10**9)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache.put(NAMES[0], PIECES[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # a write beyond fails half way, as on a full disk
    try:
        cache.put(NAMES[1], PIECES[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache.get(NAMES[1]) is None
    assert files(tmp_path) == {f"{NAMES[0]}.group": 1000}
    cache.put(NAMES[1], PIECES[1])
    assert cache.get(NAMES[1]) == PIECES[1]


@pytest.mark.parametrize("blocked", ["a file", "read-only"])
def test_cache__a_folder_that_cannot_be_written_is_no_error(blocked: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if blocked == "a file":
        folder.write_text("in the way")
    elif os.geteuid() == 0:
        folder = Path("/proc/heliostat-cache")  # nobody can make a folder here, not even root
    else:
        tmp_path.chmod(0o500)
    cache = ShardCache(folder, 10_000)
    cache.put(NAMES[0], PIECES[0])
    assert cache.get(NAMES[0]) is None
