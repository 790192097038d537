"""What the names of files and members mean, and how they are shown. Pure functions."""

from pathlib import PurePosixPath

_COMPANION_SUFFIXES = frozenset({".csv", ".json", ".md", ".txt"})
_COMPANION_NAMES = frozenset({"desktop.ini", "license", "readme", "thumbs.db"})

LINK_LEAVES = "the link leads out of the source folder"


def text_of(name: bytes) -> str:
    """A name from a file system or an archive as text that any file can hold."""
    return name.decode("utf-8", "backslashreplace")


def cause_of(error: Exception) -> str:
    """What went wrong, without the path that ``str(error)`` repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def is_companion(name: str) -> bool:
    """Whether a file of this name only accompanies images: hidden files, tables, texts."""
    lowered = name.lower()
    return name.startswith(".") or lowered in _COMPANION_NAMES or PurePosixPath(lowered).suffix in _COMPANION_SUFFIXES


def first_level(source: str) -> str | None:
    """The label of an image by its folder: ``cat`` for ``cat/2024/x.jpg``, none for ``x.jpg``."""
    folder, slash, _ = source.partition("/")
    return folder if slash else None
