import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heliostat.errors import (
    InvalidUrlError,
    ObjectExistsError,
    StoreDeniedError,
    StoreFailedError,
    VersionConflictError,
)
from heliostat.storage import ObjectInfo, open_store
from heliostat.storage.local import LocalStore


def test_open_store__takes_folders_that_do_not_exist_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("new/root", "~/new/root", str(tmp_path / "new" / "root"), "new/../new/root"):
        assert open_store(url).url == str(tmp_path / "new" / "root")
    assert list(open_store("new/root").list()) == []


@pytest.mark.parametrize(
    ("url", "shown"), [("", "''"), ("  ", "' '"), ("gs://user:canary@bucket", "gs://…"), ("file:///x", "file://…")]
)
def test_open_store__refuses_other_addresses_without_repeating_secrets(url: str, shown: str) -> None:
    with pytest.raises(InvalidUrlError, match=r"HS-STOR-006") as caught:
        open_store(url)
    assert shown in str(caught.value)
    assert "canary" not in str(caught.value)


def test_open_store__refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidUrlError, match="is a file"):
        open_store(str(tmp_path / "file"))


def test_list__never_shows_temporary_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a" / ".heliostat-tmp-left-by-a-killed-writer").touch()
    assert list(store.list()) == [ObjectInfo("a/b", 1)]
    store.delete("a/b")
    assert list(store.list()) == []


def test_delete__removes_folders_left_empty_but_not_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = LocalStore(root)
    store.put("a/b/c", b"")
    store.put("a/d", b"")
    store.delete("a/b/c")
    assert not (root / "a" / "b").exists()
    store.delete("a/d")
    assert list(root.iterdir()) == []


def test_put__and_delete_in_one_folder_never_meet_a_missing_folder(tmp_path: Path) -> None:
    """Deleting the last object removes the folder under the feet of other writers."""
    store = LocalStore(tmp_path)

    def churn(worker: int) -> None:
        for turn in range(40):
            store.put(f"deep/er/{worker}", b"x")
            if turn < 39:
                store.delete(f"deep/er/{worker}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    assert [info.key for info in store.list()] == [f"deep/er/{worker}" for worker in range(8)]


def test_put__onto_a_folder_or_below_an_object_says_what_is_in_the_way(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"")
    for write in (lambda: store.put("a", b""), lambda: store.create("a", b""), lambda: store.put("a/b/c", b"")):
        with pytest.raises(StoreFailedError, match=r"HS-STOR-008.*in its way"):
            write()
    assert list(store.list()) == [ObjectInfo("a/b", 0)]


def test_put__without_permission_is_denied(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreDeniedError, match="HS-STOR-005"):
        LocalStore(tmp_path).put("a", b"")


_WRITER = """
import sys
from heliostat.storage import open_store
store = open_store(sys.argv[1])
contents = [b"a" * 4_000_000, b"b" * 5_000_000]
print("ready", flush=True)
while True:
    for content in contents:
        store.put("k", content)
"""


def test_put__killed_at_any_moment_leaves_a_whole_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    whole = {b"a" * 4_000_000, b"b" * 5_000_000}
    for delay_s in (0.005, 0.02, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        while not store.exists("k"):
            time.sleep(0.001)
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert store.get("k") in whole
        assert [info.key for info in store.list()] == ["k"]


KEYS = st.sampled_from(["a", "b/c", "b/d", "b/e/f", "b-c", "g/h/i/j"])
CONTENTS = st.binary(max_size=12)


class LocalStoreAgainstDict(RuleBasedStateMachine):
    """Any sequence of operations does to the folder what it would do to a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = LocalStore(Path(self.folder.name))
        self.model: dict[str, bytes] = {}
        self.versions: dict[str, list[tuple[str, bytes]]] = {}

    @rule(key=KEYS, data=CONTENTS)
    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)
        self.model[key] = data

    @rule(key=KEYS, data=CONTENTS)
    def create(self, key: str, data: bytes) -> None:
        if key in self.model:
            with pytest.raises(ObjectExistsError):
                self.store.create(key, data)
        else:
            version = self.store.create(key, data)
            self.versions.setdefault(key, []).append((version, data))
            self.model[key] = data

    @precondition(lambda self: self.versions)
    @rule(choice=st.randoms(use_true_random=False), data=CONTENTS)
    def replace(self, choice: Random, data: bytes) -> None:
        key = choice.choice(sorted(self.versions))
        version, content = choice.choice(self.versions[key])
        if self.model.get(key) == content:
            self.versions[key].append((self.store.replace(key, data, version), data))
            self.model[key] = data
        else:
            with pytest.raises(VersionConflictError):
                self.store.replace(key, data, version)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=KEYS, start=st.integers(0, 14), length=st.integers(0, 14))
    def get(self, key: str, start: int, length: int) -> None:
        if key in self.model:
            assert self.store.get(key, start, start + length) == self.model[key][start : start + length]
        assert self.store.exists(key) == (key in self.model)

    @rule(prefix=st.sampled_from(["", "b", "b/", "b/e", "g/h/", "zz"]))
    def listed_below(self, prefix: str) -> None:
        assert [info.key for info in self.store.list(prefix)] == sorted(k for k in self.model if k.startswith(prefix))

    @invariant()
    def holds_the_same(self) -> None:
        assert {info.key: info.size_bytes for info in self.store.list()} == {k: len(v) for k, v in self.model.items()}

    def teardown(self) -> None:
        self.folder.cleanup()


TestLocalStoreAgainstDict = LocalStoreAgainstDict.TestCase
TestLocalStoreAgainstDict.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


NO_ROOM = """
import resource, sys
from heliostat.errors import StoreFailedError
from heliostat.storage import open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
store = open_store(sys.argv[1])
for write in (store.put, store.create):
    try:
        write("a/b", bytes(101))
    except StoreFailedError as error:
        print(error.code)
print([info.key for info in store.list()])
"""


def test_put__without_room_is_a_failure_of_the_store_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit of the process on the size of files stands for a full disk: writing stops in the middle as there."""
    command = [sys.executable, "-c", NO_ROOM, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines() == ["HS-STOR-008", "HS-STOR-008", "[]"], ended.stderr
