"""A numbered log in an object store: the one place that says who may write, and what was decided, in which order.

Entries are ``<folder>/00000001.json``, ``00000002.json``, …, each created only if its number is free. Whoever finds a
number taken reads what was written and, when that holds a newer lease, stops. So the order of entries is the truth:
after a lease, no older attempt can write anything, however late it wakes. What is not in the log does not exist.
"""

import re
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from heliostat.errors import CorruptLogError, FencedError, ObjectExistsError, ObjectNotFoundError
from heliostat.storage.store import Store

_READERS = 8


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _nonce() -> str:
    return secrets.token_hex(8)


class Record(BaseModel):
    """A frozen piece of JSON: unknown keys fail, numbers are not guessed from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LogRecord(Record):
    """What all entries have."""

    attempt: Annotated[int, Field(ge=1)]
    written_at: str = Field(default_factory=_now)
    """UTC, by the writer's clock: for people, never for decisions."""
    nonce: str = Field(default_factory=_nonce)
    """Makes entries of racing writers differ, on which ``Store.create`` relies."""


class LeaseEntry(LogRecord):
    """From here on only this attempt may write."""

    type: Literal["lease"] = "lease"
    holder: str
    """Who asked for it: host and process."""


E = TypeVar("E", bound=LogRecord)
"""An entry of a kind of log: ``LeaseEntry`` or another."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one attempt to write, until a newer lease is in the log."""

    attempt: int
    number: int
    """Of its entry in the log."""
    nonce: str
    """Of that entry: no other attempt of any run has it."""


def newest_lease(entries: Sequence[LogRecord]) -> Lease | None:
    """The lease that counts."""
    leases = [(number, entry) for number, entry in enumerate(entries, 1) if isinstance(entry, LeaseEntry)]
    if not leases:
        return None
    number, entry = leases[-1]
    return Lease(entry.attempt, number, entry.nonce)


class FencedLog(Generic[E]):
    """The log in a folder of a store. Threads may share one; processes each make their own.

    Args:
        store: Where the folder is.
        folder: Its name, with a slash at the end.
        parser: Of one entry.
    """

    def __init__(self, store: Store, folder: str, parser: TypeAdapter[Any]) -> None:
        self._store = store
        self._folder = folder
        self._parser = parser
        self._name = re.compile(rf"{re.escape(folder)}(\d{{8}})\.json")
        self._entries: list[E] = []
        self._lock = threading.RLock()

    def read(self) -> tuple[E, ...]:
        """All entries up to now, the first one being number 1.

        Raises:
            CorruptLogError: An entry is missing or cannot be read.
        """
        with self._lock:
            matches = (self._name.fullmatch(info.key) for info in self._store.list(self._folder))
            numbers = {int(match.group(1)) for match in matches if match}
            first, last = len(self._entries) + 1, max(numbers, default=0)
            gap = next((number for number in range(first, last + 1) if number not in numbers), None)
            if gap is not None:
                self._read_one(gap)  # raises, unless the listing was behind
            missing = range(first, last + 1)
            with ThreadPoolExecutor(_READERS) as pool:
                self._entries.extend(pool.map(self._read_one, missing))
            return tuple(self._entries)

    def acquire_lease(self, holder: str) -> Lease:
        """Begin a new attempt; all older ones are fenced off from now on. Racing callers get different attempts.

        Args:
            holder: Host and process, for people who read the log.
        """
        with self._lock:
            refused_at = 0
            while True:
                newest = newest_lease(self.read())
                attempt = newest.attempt + 1 if newest else 1
                next_number = len(self._entries) + 1
                if next_number == refused_at:
                    raise CorruptLogError(
                        f"{self._store.url}/{self._key(next_number)} can neither be read nor written",
                        "Remove what lies there if it is no log entry",
                    )
                entry: Any = LeaseEntry(attempt=attempt, holder=holder)
                number = self._try_append(entry)
                if number:
                    return Lease(attempt, number, entry.nonce)
                refused_at = next_number

    def append(self, lease: Lease, entry: E) -> int:
        """Write the next entry; its number.

        When the store cannot be reached in the middle, the entry may or may not be in the log; both are sound, and
        appending it again is too.

        Raises:
            FencedError: A newer attempt holds the lease; nothing was written.
            ValueError: The entry is of another attempt than the lease.
        """
        if entry.attempt != lease.attempt:
            raise ValueError(f"an entry of attempt {entry.attempt} under the lease of attempt {lease.attempt}")
        with self._lock:
            if len(self._entries) < lease.number:
                self.read()  # a lease from another process: this log has not seen it yet
            while True:
                self._check_fence(lease)
                if number := self._try_append(entry):
                    return number
                self.read()

    def _check_fence(self, lease: Lease) -> None:
        newest = newest_lease(self._entries)
        if newest and newest.number > lease.number:
            raise FencedError(
                f"attempt {newest.attempt} of {self._store.url} holds the lease since log entry {newest.number}; "
                f"this is attempt {lease.attempt}",
                "Stop this process: the run goes on elsewhere",
            )

    def _try_append(self, entry: E) -> int | None:
        """The number, or None when another writer took it. Only who knows all entries before it can win."""
        number = len(self._entries) + 1
        try:
            self._store.create(self._key(number), entry.model_dump_json().encode())
        except ObjectExistsError:
            return None
        self._entries.append(entry)
        return number

    def _read_one(self, number: int) -> E:
        key = self._key(number)
        try:
            entry: E = self._parser.validate_json(self._store.get(key))
            return entry
        except ObjectNotFoundError as error:
            raise CorruptLogError(
                f"{self._store.url}/{key} is missing, though later entries exist", "Restore it from a backup"
            ) from error
        except ValidationError as error:
            raise CorruptLogError(
                f"{self._store.url}/{key} is not a log entry that this version knows",
                "Use the version that wrote it, or restore the file from a backup",
            ) from error

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:08d}.json"
