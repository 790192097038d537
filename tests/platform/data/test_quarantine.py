from pathlib import Path

import pytest

from heliostat.data.images import Reason
from heliostat.data.manifest import DatasetManifest, QuarantinePart
from heliostat.data.quarantine import QuarantinedFile, load_quarantine, write_quarantine
from heliostat.errors import CorruptManifestError, ObjectNotFoundError
from heliostat.storage import Store, open_store


def refused(source: str, name: str | None = None, reason: Reason = Reason.EMPTY, detail: str = "x") -> QuarantinedFile:
    return QuarantinedFile(id=name, source=source, reason=reason, detail=detail)


def listed(store: Store, *parts: QuarantinePart) -> list[QuarantinedFile]:
    return list(load_quarantine(store, DatasetManifest(name="photos", quarantine=parts)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_write_quarantine__lists_each_refusal_once_over_all_parts(store: Store) -> None:
    first = write_quarantine(store, [], [refused("b"), refused("a", "01"), refused("b")])
    assert first is not None
    assert first.lines == 2
    again = [refused("b", detail="said differently"), refused("a", "01"), refused("a", "02"), refused("c")]
    second = write_quarantine(store, [first], again)
    assert second is not None
    assert [(file.source, file.id) for file in listed(store, first, second)] == [
        ("a", "01"),
        ("b", None),
        ("a", "02"),
        ("c", None),
    ]
    assert write_quarantine(store, [first, second], again) is None
    assert write_quarantine(store, [], []) is None
    assert len(list(store.list())) == 2


def test_write_quarantine__the_order_of_refusals_does_not_matter(store: Store) -> None:
    files = [refused(f"{number % 7}", f"{number:02}", reason) for number in range(20) for reason in Reason]
    assert write_quarantine(store, [], files) == write_quarantine(store, [], reversed(files))


def test_write_quarantine__names_that_look_like_json_are_only_names(store: Store) -> None:
    names = ['a","detail":"b', 'a","id":null', "a\\", "a\n", "\u2028"]
    part = write_quarantine(store, [], [refused(name, detail=name) for name in names])
    assert part is not None
    assert part.lines == len(names)
    assert {file.source for file in listed(store, part)} == set(names)
    assert write_quarantine(store, [part], [refused(name, detail="other") for name in names]) is None


def test_load_quarantine__reads_long_parts_in_pieces(store: Store) -> None:
    files = [refused(f"{number:06}", detail="d" * 100) for number in range(40_000)]
    part = write_quarantine(store, [], reversed(files))
    assert part is not None
    assert part.size_bytes > 4 * 2**20
    assert listed(store, part) == files


def test_load_quarantine__a_part_that_was_changed_or_removed_is_an_error(store: Store) -> None:
    part = write_quarantine(store, [], [refused("a"), refused("b")])
    assert part is not None
    data = store.get(part.key)
    store.put(part.key, data.replace(b'"a"', b'"c"'))
    with pytest.raises(CorruptManifestError, match=r"HS-DATA-004: quarantine/.* does not have the hash"):
        listed(store, part)
    store.put(part.key, data.replace(b'"empty"', b'"purple"'))
    with pytest.raises(CorruptManifestError, match="in no known format"):
        listed(store, part)
    store.delete(part.key)
    with pytest.raises(ObjectNotFoundError):
        listed(store, part)
