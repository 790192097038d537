"""Images that are objects on S3: those of a list of ``s3://bucket/key`` addresses, or all below a prefix."""

from collections.abc import Iterator
from dataclasses import dataclass

from heliostat.data.images import ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.files import S3, split_address
from heliostat.data.sources.lists import Entry, ListSource
from heliostat.data.sources.names import first_level, is_companion
from heliostat.data.sources.source import Item, ObjectPlace, RefusedItem, patient_store_at, store_at
from heliostat.errors import InvalidKeyError, InvalidUrlError, ObjectNotFoundError


@dataclass(frozen=True)
class KeysSource(ListSource):
    """A list with one ``s3://bucket/key`` per line, or a CSV file with the columns ``key`` and ``label``."""

    def fetch(self, entry: Entry, limits: ImageLimits) -> Item | RefusedItem:
        """See ``ListSource.fetch``. One request; never more than one byte beyond the limit."""
        if not entry.address.startswith(S3):
            return RefusedItem(entry.address[:200], Reason.FORBIDDEN_ADDRESS, "the address is not s3://bucket/key")
        store_url, key = split_address(entry.address)
        try:
            data = patient_store_at(store_url).get(key, 0, limits.max_bytes + 1)
            if len(data) > limits.max_bytes:
                size = patient_store_at(store_url).size(key)
                return RefusedItem(entry.address, Reason.TOO_MANY_BYTES, too_many_bytes(size, limits).fact)
        except InvalidUrlError as error:  # it may hold a password, so it is not repeated
            return RefusedItem(f"{self.name}:{entry.line}", Reason.UNSAFE_NAME, error.fact)
        except InvalidKeyError as error:
            return RefusedItem(entry.address[:200], Reason.UNSAFE_NAME, error.fact)
        except ObjectNotFoundError as error:
            return RefusedItem(entry.address, Reason.UNREADABLE, error.fact)
        return Item(entry.address, entry.label, data, ObjectPlace(store=store_url, key=key, size=len(data)))


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
