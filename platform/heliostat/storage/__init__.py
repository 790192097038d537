"""Objects in a local folder or on S3, behind one interface. Start with ``store.py``."""

from pathlib import Path
from urllib.parse import urlsplit

from heliostat.errors import InvalidUrlError
from heliostat.storage.store import ObjectInfo, Store

__all__ = ["ObjectInfo", "Store", "open_store"]


def open_store(url: str) -> Store:
    """The store at a folder's path or at ``s3://bucket/prefix``. Nothing is read or made yet.

    Raises:
        InvalidUrlError: Neither of the two, or an S3 address with credentials in it.
    """
    if url.startswith("s3://"):
        # boto3 takes a third of a second to import: a run in a local folder does not pay for it.
        from heliostat.storage.s3 import S3Store

        return S3Store.from_url(url)
    from heliostat.storage.local import LocalStore

    if not url.strip() or "\0" in url or "://" in url:
        # Only the scheme is repeated: the rest may hold a password.
        shown = f"{urlsplit(url).scheme}://…" if "://" in url else repr(url)
        raise InvalidUrlError(f"the root {shown} is neither a folder nor s3://bucket/prefix", "Give one of these two")
    try:
        root = Path(url).expanduser().resolve()
        is_file = root.exists() and not root.is_dir()
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long, a user that is not there
        raise InvalidUrlError(f"the root {url!r} cannot be a folder: {error}", "Give another path") from error
    if is_file:
        raise InvalidUrlError(f"the root {root} is a file, not a folder", "Give a folder or s3://bucket/prefix")
    return LocalStore(root)
