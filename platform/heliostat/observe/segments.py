"""Append-only streams of JSON lines over a store whose objects cannot be appended to.

A stream is a run of numbered objects ``<prefix>/<seq:08d>.jsonl``, each created only if absent and never changed, so a
reader sees whole segments or none. Several writers may share a prefix, if their lines differ (by rank or by time): who
finds a number taken takes the next one.

Observation must never stop training. ``SegmentWriter.write`` only fills a buffer; a background thread talks to the
store. While that fails the buffer keeps the newest lines, and a ``lines_dropped`` line says how many are missing.
"""

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from heliostat.errors import ObjectExistsError
from heliostat.storage import Store

Line = dict[str, Any]
"""One decoded line: a JSON object."""

LINES_DROPPED = "lines_dropped"

_log = logging.getLogger(__name__)


def utc_now() -> str:
    """The time of day as written in every line: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode_line(line: Mapping[str, object]) -> bytes:
    """One line of strict JSON with its newline.

    JSON has no NaN and no infinity: they become null. Numbers of NumPy and torch become plain numbers, and what JSON
    does not know becomes text, because an odd field must not stop a run.
    """
    text = json.dumps(_plain(line), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair (a file name that is not Unicode) has no UTF-8; its backslash form is JSON's own escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain_number(value)


def _plain_number(value: object) -> object:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, for tensors of many numbers
        return str(value)
    return number if math.isfinite(number) else None


class SegmentWriter:
    """Buffers lines and writes them as segments from a thread of its own. Thread-safe.

    Args:
        store: Where the stream lives.
        prefix: Key prefix of the stream, without a trailing slash.
        flush_interval_s: Seconds between writes; no segment is written when nothing is buffered.
        max_buffered_lines: Lines kept while the store fails; beyond it the oldest are dropped and counted.
        common: Fields added to every line, the one about dropped lines included.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        flush_interval_s: float = 2.0,
        *,
        max_buffered_lines: int = 10_000,
        common: Mapping[str, object] | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._common = dict(common or {})
        self._max_lines = max_buffered_lines
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._next_seq: int | None = None
        self._unconfirmed: bytes | None = None
        self._failing = False
        self._buffer_lock = threading.Lock()
        self._store_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._flush_regularly, args=(flush_interval_s,), name=f"segments-{prefix}", daemon=True
        )
        self._thread.start()

    def write(self, line: Mapping[str, object]) -> None:
        """Buffer one line. Never waits for the store and never fails because of it."""
        encoded = encode_line({**self._common, **line})
        with self._buffer_lock:
            self._lines.append(encoded)
            self._drop_oldest()

    def flush(self) -> bool:
        """Write what is buffered now, waiting for the store. False when the store failed; the lines are then kept."""
        with self._store_lock:
            try:
                self._write_unconfirmed()
                self._take_buffer()
                self._write_unconfirmed()
            except Exception as error:  # whatever the store raises: training goes on, the next flush tries again
                if not self._failing:
                    _log.warning("cannot write %s, will retry: %s", self._prefix, error)
                self._failing = True
                return False
            self._failing = False
            return True

    def unwritten(self) -> bytes:
        """The lines that are not known to be in the store, encoded; never waits for the store."""
        with self._buffer_lock:
            return (self._unconfirmed or b"") + b"".join(self._lines)

    def write_encoded(self, lines: bytes) -> None:
        """Buffer lines that another writer has encoded, as they are."""
        with self._buffer_lock:
            self._lines.extend(lines.splitlines(keepends=True))
            self._drop_oldest()

    def close(self) -> None:
        """Stop the thread and write the rest. What the store still refuses is lost, and a warning says how much."""
        self._closing.set()
        self._thread.join()
        if not self.flush():
            lost = self._dropped + len(self._lines) + (self._unconfirmed or b"").count(b"\n")
            _log.warning("%d lines of %s are lost: the store refused them", lost, self._prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush_regularly(self, interval_s: float) -> None:
        while not self._closing.wait(interval_s):
            self.flush()

    def _drop_oldest(self) -> None:
        while len(self._lines) > self._max_lines:
            self._lines.popleft()
            self._dropped += 1

    def _take_buffer(self) -> None:
        with self._buffer_lock:
            lines = list(self._lines)
            if self._dropped:
                gap = {"time_utc": utc_now(), "type": LINES_DROPPED, **self._common, "lines": self._dropped}
                lines.insert(0, encode_line(gap))
            self._lines.clear()
            self._dropped = 0
            self._unconfirmed = b"".join(lines) or None

    def _write_unconfirmed(self) -> None:
        # A create that failed may have arrived all the same (a lost answer). The same bytes are tried again under the
        # same number, so that finding them there means success and no line is ever written twice.
        if self._unconfirmed is None:
            return
        if self._next_seq is None:
            self._next_seq = _first_free(self._store, self._prefix)
        while True:
            key = segment_key(self._prefix, self._next_seq)
            try:
                self._store.create(key, self._unconfirmed)
                break
            except ObjectExistsError:
                if self._failing and self._store.get(key) == self._unconfirmed:
                    break
                self._next_seq += 1
        self._next_seq += 1
        self._unconfirmed = None


def segment_key(prefix: str, seq: int) -> str:
    """Key of one segment."""
    return f"{prefix}/{seq:08d}.jsonl"


def _first_free(store: Store, prefix: str) -> int:
    taken = [int(stem) for key in _segment_keys(store, prefix) if (stem := _stem(key)).isdigit()]
    return max(taken, default=-1) + 1


def _stem(key: str) -> str:
    return key.rsplit("/", 1)[-1].removesuffix(".jsonl")


def _segment_keys(store: Store, prefix: str) -> Iterator[str]:
    return (info.key for info in store.list(f"{prefix}/") if info.key.endswith(".jsonl"))


def _decode(data: bytes) -> list[Line]:
    return [json.loads(line) for line in data.splitlines() if line]


def read_segments(store: Store, prefix: str) -> Iterator[Line]:
    """All lines below a prefix in the order of their segments; streams below it (attempts) follow one another."""
    for key in _segment_keys(store, prefix):
        yield from _decode(store.get(key))


class SegmentTail:
    """Follows all streams below a prefix: each poll returns the lines of segments not seen before."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._seen: set[str] = set()

    def poll(self) -> list[Line]:
        """New lines in the order of their segments; empty when there are none."""
        keys = [key for key in _segment_keys(self._store, self._prefix) if key not in self._seen]
        lines = [line for key in keys for line in _decode(self._store.get(key))]
        self._seen.update(keys)  # only now: when the store fails half-way, the next poll reads them all again
        return lines
