from pathlib import Path

import pytest

from heliostat.observe.events import Event, EventType, EventWriter, read_events
from heliostat.storage import open_store


def test_event_type__every_type_has_a_sentence() -> None:
    for kind in EventType:
        assert kind.__doc__ and kind.__doc__.endswith("."), kind


def test_event_writer__events_come_back_attempt_by_attempt(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with EventWriter(store, attempt=2, rank=1) as second, EventWriter(store, attempt=1) as first:
        second.emit(EventType.STEP_SKIPPED, step=7, reason="loss is not finite")
        first.emit(EventType.ATTEMPT_STARTED, workers=2)
        first.emit(EventType.ATTEMPT_ENDED, cause="node lost")
    events = read_events(store)
    assert [(event.attempt, event.type) for event in events] == [
        (1, EventType.ATTEMPT_STARTED),
        (1, EventType.ATTEMPT_ENDED),
        (2, EventType.STEP_SKIPPED),
    ]
    assert [info.key for info in store.list("events/")] == [
        "events/0001/00000000.jsonl",
        "events/0002/00000000.jsonl",
    ]
    assert events[0].fields == {"workers": 2} and events[0].rank is None
    assert events[2].fields == {"step": 7, "reason": "loss is not finite"} and events[2].rank == 1
    assert events[0].time_utc < events[1].time_utc


def test_event__line_round_trip_keeps_types_of_newer_versions() -> None:
    line = {"time_utc": "2026-01-02T03:04:05.000000Z", "type": "sun_rose", "attempt": 1, "where": "east"}
    assert Event.from_line(line).to_line() == line


def test_emit__refuses_fields_that_every_event_has(tmp_path: Path) -> None:
    with EventWriter(open_store(str(tmp_path)), attempt=1) as writer, pytest.raises(ValueError, match="attempt"):
        writer.emit(EventType.RESUMED, attempt=4)


def test_emit__secrets_never_reach_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "canary-4711")
    store = open_store(str(tmp_path))
    with EventWriter(store, attempt=1) as writer:
        writer.emit(EventType.ATTEMPT_ENDED, cause=RuntimeError("401 for canary-4711"), at=["s3://u:canary@host/x"])
    written = b"".join(store.get(info.key) for info in store.list())
    assert b"canary" not in written and b"401 for ***" in written
