"""Which source a text means: chosen by what lies there, so that users name it and no more."""

import os
from collections.abc import Iterable
from itertools import islice, takewhile
from pathlib import Path

from heliostat.data.sources.files import S3, is_pattern, split_address
from heliostat.data.sources.folder import FolderSource
from heliostat.data.sources.keys import KeysSource, PrefixSource
from heliostat.data.sources.lists import ListSource, read_list
from heliostat.data.sources.names import is_companion
from heliostat.data.sources.parquet import ParquetSource
from heliostat.data.sources.source import Source, store_at
from heliostat.data.sources.tar import TarSource
from heliostat.data.sources.urls import UrlSource
from heliostat.errors import InvalidValueError, NoImagesError, SourceNotFoundError

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_PARQUET = (".parquet", ".pq")
_LIST = (".txt", ".csv")
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif")
_LOOKED_AT = 1000
"""Objects of a folder on S3 that decide what a prefix holds: one answer of the store."""
_NEXT = (
    "Give a folder of images, tar archives or Parquet files, a pattern of these, or a .txt or .csv list of addresses"
)


def open_source(text: str, *, labels: Path | None = None, allow_urls: bool = False) -> Source:
    """The source that a path or an ``s3://`` address stands for. No image is read yet.

    Args:
        text: A folder (of images, tar archives or Parquet files), one such file, a pattern of them
            (``shards-{000..010}.tar``, ``train-*.parquet``), or a ``.txt`` or ``.csv`` list of ``s3://`` or ``https://``
            addresses. All of these may be on S3.
        labels: A CSV file with the columns ``path`` and ``label`` for a folder of images.
        allow_urls: Whether a list of https addresses may be fetched.

    Raises:
        SourceNotFoundError: it does not exist, or is of no known kind.
        NoImagesError: it is an empty list or prefix.
        InvalidValueError: labels for a source that has its own, or a list of https addresses that is not allowed.
        StorageError: the store does not cooperate.
    """
    source = _source(text, labels, allow_urls)
    if labels is not None and not isinstance(source, FolderSource):
        raise InvalidValueError(f"a file of labels goes with a folder of images, and {text!r} is none", "Leave it out")
    return source


def _source(text: str, labels: Path | None, allow_urls: bool) -> Source:
    name = text.lower()
    if "://" in text and not text.startswith(S3):
        scheme = text.partition("://")[0]
        raise SourceNotFoundError(f"the source {scheme}://… is neither a path nor s3://bucket/prefix", _NEXT)
    if not text.startswith(S3) and _is_folder(text):
        kind = _kind_of_all(text, _first_files(text))
        return FolderSource(text, None if labels is None else str(labels)) if kind is FolderSource else kind(text)
    if name.endswith(_LIST):
        return _list_source(text, allow_urls)
    if (kind := _kind(name)) is not FolderSource:
        return kind(text)
    if text.startswith(S3):
        return _prefix_source(text)
    fact = "is a file of no known kind" if text and Path(text).exists() else "does not exist"
    raise SourceNotFoundError(f"the source {text!r} {fact}", _NEXT)


def _kind(name: str) -> type[FolderSource] | type[TarSource] | type[ParquetSource]:
    lowered = name.lower()
    if lowered.endswith(_TAR):
        return TarSource
    return ParquetSource if lowered.endswith(_PARQUET) else FolderSource


def _kind_of_all(text: str, names: Iterable[str]) -> type[FolderSource] | type[TarSource] | type[ParquetSource]:
    """What files of one folder are together. With a single photograph among them they are photographs.

    Raises:
        InvalidValueError: they are both archives and tables.
    """
    lowered = [name.lower() for name in names]
    kinds = {_kind(name) for name in lowered}
    if kinds <= {FolderSource} or any(name.endswith(_PHOTOGRAPHS) for name in lowered):
        return FolderSource
    if kinds >= {TarSource, ParquetSource}:
        fact = f"the source {text!r} holds both tar archives and Parquet files"
        raise InvalidValueError(fact, "Name those of one kind, for example with a pattern such as FOLDER/*.tar")
    return TarSource if TarSource in kinds else ParquetSource


def _is_folder(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise SourceNotFoundError(f"the source {text!r} cannot be read: {error}", "Check it") from error


def _first_files(folder: str) -> list[str]:
    """Names of all files of the first folder that has any; those that only accompany others do not count."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if found := [name for name in files if not is_companion(name)]:
            return found
    return []


def _list_source(text: str, allow_urls: bool) -> ListSource:
    entry = next((entry for entry in read_list(text) if not entry.fault), None)
    if entry is None:
        raise NoImagesError(f"the list {text!r} names no image", "Give one address per line")
    if entry.address.startswith(S3):
        return KeysSource(text)
    if not entry.address.lower().startswith("https://"):
        fact = f"the first address of {text!r} is neither s3://bucket/key nor https://host/path"
        raise SourceNotFoundError(fact, "Give such addresses, one per line, or a CSV file with columns key or url")
    if not allow_urls:
        raise InvalidValueError(
            f"{text!r} lists https addresses, which are fetched only on request",
            "Add --allow-urls (allow_urls=True) if this machine may ask the hosts of that list",
        )
    return UrlSource(text)


def _prefix_source(text: str) -> Source:
    """By the first objects below a prefix that are in one folder."""
    if is_pattern(text):
        raise SourceNotFoundError(f"the pattern {text!r} ends in no known kind of file", _NEXT)
    store_url, prefix = split_address(text.rstrip("/"))
    objects = store_at(store_url).list(f"{prefix}/" if prefix else "")
    keys = (info.key for info in objects if not is_companion(info.key.rpartition("/")[2]))
    first = next(keys, None)
    if first is None:
        raise SourceNotFoundError(f"the source {text!r} does not exist", "Check the name")
    folder = first.rpartition("/")[0]
    others = takewhile(lambda key: key.rpartition("/")[0] == folder, islice(keys, _LOOKED_AT))
    kind = _kind_of_all(text, [first, *others])
    return PrefixSource(text) if kind is FolderSource else kind(text)
