"""What every store promises, held against a folder and against a real S3 server."""

import multiprocessing
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat.errors import InvalidKeyError, ObjectExistsError, ObjectNotFoundError, VersionConflictError
from heliostat.storage import ObjectInfo, Store, open_store
from heliostat.storage.store import is_key, normalise_key, normalise_prefix

RACERS = 16


def test_get__returns_what_was_put_and_what_overwrote_it(store: Store) -> None:
    store.put("a/b.bin", b"one")
    assert store.get("a/b.bin") == b"one"
    store.put("a/b.bin", b"")
    assert store.get("a/b.bin") == b""
    assert store.get_versioned("a/b.bin")[0] == b""


@pytest.mark.parametrize(("start", "end"), [(0, 4), (3, 9), (9, 10), (5, None), (0, 99), (4, 4), (10, 12), (50, None)])
def test_get__cuts_ranges_as_slices_do(store: Store, start: int, end: int | None) -> None:
    store.put("k", b"0123456789")
    assert store.get("k", start, end) == b"0123456789"[start:end]


@pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 2)])
def test_get__refuses_ranges_from_the_end(store: Store, start: int, end: int | None) -> None:
    with pytest.raises(ValueError, match="byte range"):
        store.get("k", start, end)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.get("none"),
        lambda store: store.get("none", 2, 3),
        lambda store: store.get("none", 2, 2),
        lambda store: store.get("folder"),
        lambda store: store.get("folder/x/below-an-object"),
        lambda store: store.get_versioned("none"),
        lambda store: store.size("none"),
        lambda store: store.size("folder"),
    ],
)
def test_reads__of_what_is_not_there_name_it(store: Store, read: Callable[[Store], object]) -> None:
    store.put("folder/x", b"")
    with pytest.raises(ObjectNotFoundError, match=r"HS-STOR-001.*(none|folder)"):
        read(store)
    assert not store.exists("none")
    assert not store.exists("folder")


def test_size__and_exists_of_an_object(store: Store) -> None:
    store.put("k", b"12345")
    assert store.size("k") == 5
    assert store.exists("k")


def test_create__succeeds_once(store: Store) -> None:
    version = store.create("log/1", b"mine")
    with pytest.raises(ObjectExistsError, match=r"HS-STOR-002.*log/1"):
        store.create("log/1", b"yours")
    assert store.get_versioned("log/1") == (b"mine", version)


def test_create__of_sixteen_racers_one_wins(store: Store) -> None:
    def race(racer: int) -> int | None:
        try:
            store.create("log/1", f"racer {racer}".encode())
        except ObjectExistsError:
            return None
        return racer

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [racer for racer in pool.map(race, range(RACERS)) if racer is not None]
    assert len(winners) == 1
    assert store.get("log/1") == f"racer {winners[0]}".encode()


def test_replace__needs_the_version_that_was_read(store: Store) -> None:
    first = store.create("pointer", b"1")
    second = store.replace("pointer", b"2", first)
    with pytest.raises(VersionConflictError, match=r"HS-STOR-003.*pointer"):
        store.replace("pointer", b"3", first)
    assert store.get_versioned("pointer") == (b"2", second)


def test_replace__of_a_deleted_object_conflicts(store: Store) -> None:
    version = store.create("pointer", b"1")
    store.delete("pointer")
    with pytest.raises(VersionConflictError):
        store.replace("pointer", b"2", version)
    assert not store.exists("pointer")


def test_replace__loses_no_increment_of_racing_counters(store: Store) -> None:
    store.put("counter", b"0 by nobody")

    def increment(racer: int) -> None:
        while True:
            data, version = store.get_versioned("counter")
            value = int(data.split()[0]) + 1
            try:
                store.replace("counter", f"{value} by {racer}".encode(), version)
                return
            except VersionConflictError:
                continue

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(increment, range(RACERS)))
    assert store.get("counter").startswith(f"{RACERS} by".encode())


def test_upload__and_put_chunks_write_the_whole_content(store: Store, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(17 * 1024 * 1024)  # more than one part
    source = tmp_path / "source.bin"
    source.write_bytes(content)
    store.upload("up/loaded", source)
    assert store.get("up/loaded") == content
    store.put_chunks("up/chunks", lambda: [memoryview(content[:7]), b"", content[7:]])
    assert store.get("up/chunks", 5, 9) == content[5:9]
    assert store.size("up/chunks") == len(content)
    store.put_chunks("up/empty", list)
    assert store.get("up/empty") == b""


def test_upload__of_a_missing_file_writes_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.upload("k", tmp_path / "none")
    assert list(store.list()) == []


def test_put_chunks__that_fail_midway_leave_the_old_content(store: Store) -> None:
    def broken() -> list[bytes]:
        raise ZeroDivisionError

    store.put("k", b"old")
    with pytest.raises(ZeroDivisionError):
        store.put_chunks("k", broken)
    assert store.get("k") == b"old"
    assert list(store.list()) == [ObjectInfo("k", 3)]


def test_list__is_in_the_order_of_keys_with_sizes(store: Store) -> None:
    keys = ["a/b", "a-b", "a.b", "a/b.c/d", "b", "a/é", "a/z", "A"]
    for key in keys:
        if key != "a/b":  # a folder cannot hold both a/b and what is below it
            store.put(key, key.encode())
    expected = sorted(set(keys) - {"a/b"})
    assert list(store.list()) == [ObjectInfo(key, len(key.encode())) for key in expected]


def test_list__takes_any_beginning_of_a_key(store: Store) -> None:
    for key in ("run/1", "run/12", "run/2", "runner"):
        store.put(key, b"")
    assert [info.key for info in store.list("run")] == ["run/1", "run/12", "run/2", "runner"]
    assert [info.key for info in store.list("run/")] == ["run/1", "run/12", "run/2"]
    assert [info.key for info in store.list("./run//1")] == ["run/1", "run/12"]
    assert list(store.list("none/at/all")) == []
    assert list(store.list("runner/")) == []


def test_folders__are_the_names_one_step_below(store: Store) -> None:
    for key in ("runs/a/x", "runs/a/y/z", "runs/b.c/x", "runs-2/d/x", "runs/file", "top"):
        store.put(key, b"")
    assert store.folders("runs/") == ["a", "b.c"]
    assert store.folders("runs") == ["a", "b.c"]
    assert store.folders() == ["runs", "runs-2"]
    assert store.sub("runs").folders() == ["a", "b.c"]
    assert store.folders("none/at/all/") == []
    assert store.folders("runs/file/") == []
    store.delete("runs/b.c/x")
    assert set(store.folders("runs/")) - {"b.c"} == {"a"}


def test_folders__go_on_after_a_thousand_names(store: Store) -> None:
    names = [f"{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(f"many/{name}/x", b""), names))
    assert store.folders("many/") == names


def test_list__goes_on_after_a_thousand_keys(store: Store) -> None:
    keys = [f"many/{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    assert [info.key for info in store.list("many/")] == keys


def test_delete__is_idempotent(store: Store) -> None:
    store.put("a/b/c", b"")
    store.delete("a/b/c")
    store.delete("a/b/c")
    store.delete("never/was")
    assert list(store.list()) == []
    store.put("a/b", b"where a folder was")
    assert store.get("a/b") == b"where a folder was"


def test_sub__sees_the_same_objects_below_a_prefix(store: Store) -> None:
    below = store.sub("runs/first")
    below.put("commits/1", b"x")
    store.put("runs/firstborn", b"not below")
    assert store.get("runs/first/commits/1") == b"x"
    assert [info.key for info in below.list()] == ["commits/1"]
    assert [info.key for info in below.sub("commits").list()] == ["1"]
    assert open_store(below.url).get("commits/1") == b"x"
    assert below.url.endswith("/runs/first")


def test_store__survives_pickling(store: Store) -> None:
    store.put("k", b"v")
    for copy in (pickle.loads(pickle.dumps(store)), pickle.loads(pickle.dumps(store.sub("below")))):
        copy.put("k", b"from the copy")
    assert store.get("k") == b"v" or store.get("k") == b"from the copy"
    assert store.get("below/k") == b"from the copy"
    assert pickle.loads(pickle.dumps(store)) == store


def _create_in_process(store: Store, racer: int) -> bool:
    try:
        store.create("log/1", f"process {racer}".encode())
    except ObjectExistsError:
        return False
    return True


def test_create__races_between_processes_too(store: Store) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.starmap(_create_in_process, [(store, racer) for racer in range(RACERS)], chunksize=1)
    assert sum(won) == 1
    assert store.get("log/1") == f"process {won.index(True)}".encode()


HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../outside",
    "a/../../outside",
    "a/..",
    "a\0b",
    "a\nb",
    ".",
    "./",
    ".heliostat-tmp-1",
    "a/.heliostat-lock/b",
    "x" * 201,
    "x/" * 600,
    "\ud800",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_keys__that_are_hostile_are_refused_by_every_method(store: Store, key: str, tmp_path: Path) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_versioned(key),
        lambda: store.size(key),
        lambda: store.exists(key),
        lambda: store.put(key, b"x"),
        lambda: store.put_chunks(key, lambda: [b"x"]),
        lambda: store.create(key, b"x"),
        lambda: store.replace(key, b"x", "v"),
        lambda: store.upload(key, tmp_path),
        lambda: store.delete(key),
        lambda: store.sub(key),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidKeyError, match="HS-STOR-007"):
            attempt()
    assert list(store.list()) == []


@pytest.mark.parametrize("prefix", ["/", "/etc", "..", "../", "a/../b", "a\0", ".heliostat-"])
def test_list__refuses_hostile_prefixes(store: Store, prefix: str) -> None:
    with pytest.raises(InvalidKeyError):
        list(store.list(prefix))


def test_normalise_key__has_one_spelling_per_object() -> None:
    assert normalise_key("a//b/./c/") == "a/b/c"
    assert normalise_prefix("a//b/") == "a/b/"
    assert normalise_prefix("") == ""
    assert is_key("a/b")
    assert not is_key("a//b")
    assert not is_key("a/")
    assert not is_key("../a")
