"""Images that are objects on S3: those of a list of ``s3://bucket/key`` addresses, or all below a prefix."""

from collections.abc import Iterator
from dataclasses import dataclass

from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.files import S3, split_address
from heliostat.data.sources.lists import Entry, ListSource
from heliostat.data.sources.names import first_level, is_companion
from heliostat.data.sources.source import Item, ObjectPlace, RefusedItem, Unit, patient_store_at, store_at
from heliostat.data.sources.urls import shown_url
from heliostat.errors import (
    InvalidKeyError,
    InvalidUrlError,
    ObjectNotFoundError,
    StorageError,
    StoreDeniedError,
    StoreFailedError,
)


@dataclass(frozen=True, slots=True)
class _RefusedObject(RefusedItem):
    """An object that cannot be taken; ``denied`` if its store does not say what is there."""

    denied: StorageError | None = None


@dataclass(frozen=True)
class KeysSource(ListSource):
    """A list with one ``s3://bucket/key`` per line, or a CSV file with the columns ``key`` and ``label``."""

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """See ``Source.read``. Objects that are denied are refused if the unit has one that is not.

        Raises:
            StorageError: the store does not cooperate, or denies all objects of the unit: then more than a line of
                the list is wrong, the credentials for example.
        """
        denied: list[RefusedItem] = []
        cause: StorageError | None = None
        is_answered = False
        for item in super().read(unit, limits):
            if isinstance(item, _RefusedObject) and item.denied:
                cause = cause or item.denied
                denied.append(item)
            else:
                is_answered = is_answered or isinstance(item, Item | _RefusedObject)
                yield item
            if is_answered:
                yield from denied
                denied = []
        if denied and cause:
            raise cause

    def fetch(self, entry: Entry, limits: ImageLimits) -> Item | RefusedItem:
        """See ``ListSource.fetch``. One request; never more than one byte beyond the limit."""
        if not entry.address.startswith(S3):
            return RefusedItem(self._line(entry), Reason.FORBIDDEN_ADDRESS, "the address is not s3://bucket/key")
        store_url, key = split_address(entry.address)
        try:
            data = patient_store_at(store_url).get(key, 0, limits.max_bytes + 1)
            if len(data) > limits.max_bytes:
                size = patient_store_at(store_url).size(key)
                return _RefusedObject(_shown(entry), Reason.TOO_MANY_BYTES, too_many_bytes(size, limits).fact)
        except InvalidUrlError as error:  # it may hold a password, so it is not repeated
            return RefusedItem(self._line(entry), Reason.UNSAFE_NAME, error.fact)
        except InvalidKeyError as error:
            return RefusedItem(_shown(entry), Reason.UNSAFE_NAME, _fact(entry, error))
        except ObjectNotFoundError as error:
            return _RefusedObject(_shown(entry), Reason.UNREADABLE, _fact(entry, error))
        except (StoreDeniedError, StoreFailedError) as error:
            return _RefusedObject(_shown(entry), Reason.UNREADABLE, _fact(entry, error), error)
        return Item(entry.address, entry.label, data, ObjectPlace(store=store_url, key=key, size=len(data)))

    def _line(self, entry: Entry) -> str:
        """A line whose address may hold anything, a password too."""
        return f"{self.name}:{entry.line}"


@dataclass(frozen=True)
class PrefixSource(KeysSource):
    """All objects below ``s3://bucket/prefix``, with labels as in a folder tree. The store lists them all first."""

    def entries(self) -> Iterator[Entry]:
        """The objects, but for hidden ones and companions of images."""
        store_url, prefix = split_address(self.name.rstrip("/"))
        start = f"{prefix}/" if prefix else ""
        for number, info in enumerate(store_at(store_url).list(start)):
            below = info.key[len(start) :]
            *folders, name = below.split("/")
            if not any(folder.startswith(".") for folder in folders) and not is_companion(name):
                address = f"{store_url}/{info.key}"
                yield Entry(line=number, address=address, label=first_level(below), size=info.size_bytes)


def _shown(entry: Entry) -> str:
    """An address for people: a signed one, which is no key but may be taken for one, without its signature."""
    return shown_url(entry.address) if "?" in entry.address else entry.address[:2000]


def _fact(entry: Entry, error: StorageError) -> str:
    """What is wrong; errors repeat the key."""
    return "the store has no such object, or does not give it out" if "?" in entry.address else error.fact
