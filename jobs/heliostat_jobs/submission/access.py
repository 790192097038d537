"""Whether a cluster may be talked to, and with which token.

Whoever can submit a job can run any code on the cluster: Ray's Jobs API is that by design (CVE-2023-48022). So beyond
this machine a token is asked for, and TLS, since a token that is sent in clear is everybody's. The token is in a file
that only its owner can read; it never passes through a recipe, a command line or an environment variable.
"""

import ipaddress
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from heliostat.errors import InsecureClusterError, InvalidValueError

TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 -- the name of a variable
_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 -- the name of a variable
ADDRESS_VARIABLE = "HELIOSTAT_ADDRESS"
_DEFAULT_PORT = 8265
_DEFAULT_TOKEN = Path(".ray/auth_token")


def cluster_url(address: str) -> str:
    """The address of a cluster's dashboard as ``http://host:port``; scheme and port may be left out.

    Raises:
        InvalidValueError: it is none, or has a password in it.
    """
    url = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = url.port
    except ValueError:
        port = None
        url = url._replace(netloc="")
    if url.username or url.password:
        raise InvalidValueError(
            "the address of the cluster has a user or password in it",
            f"Give it without, and the file of the token in {TOKEN_PATH_VARIABLE}",
        )
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query:
        raise InvalidValueError(
            f"{address!r} is no address of a Ray dashboard", "Give one like http://head:8265 or https://ray.example.org"
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port or (443 if url.scheme == 'https' else _DEFAULT_PORT)}"


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_file(environ: Mapping[str, str], home: Path) -> Path | None:
    """The file of the token; None if there is none.

    Raises:
        InsecureClusterError: the token is given as a value, or others may read its file.
    """
    if environ.get(_TOKEN_VARIABLE):
        raise InsecureClusterError(
            f"{_TOKEN_VARIABLE} holds a token as a value, which every process and crash report of this session sees",
            f"Put it into a file of mode 600, and the file's path into {TOKEN_PATH_VARIABLE}",
        )
    named = environ.get(TOKEN_PATH_VARIABLE)
    path = Path(named).expanduser() if named else home / _DEFAULT_TOKEN
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not named:
            return None
        raise InsecureClusterError(
            f"{TOKEN_PATH_VARIABLE} names {path}, which cannot be read: {error.strerror}", "Check the path"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InsecureClusterError(f"others may read the token in {path}", f"Run: chmod 600 {path}")
    return path


def check_access(url: str, token: Path | None, *, is_insecure_wanted: bool = False) -> None:
    """Refuse a cluster beyond this machine that is not protected.

    Args:
        url: As ``cluster_url`` gives it.
        token: The file of the token, if there is one.
        is_insecure_wanted: Whether the user has said that it is fine.

    Raises:
        InsecureClusterError: no token, or no TLS.
    """
    if is_loopback(url) or is_insecure_wanted:
        return
    missing = [] if token else ["no token"]
    missing += [] if url.startswith("https://") else ["no TLS"]
    if missing:
        raise InsecureClusterError(
            f"{url} would be used with {' and '.join(missing)}: whoever reaches it, or listens, runs code on it",
            f"Use https and a token ({TOKEN_PATH_VARIABLE}), or a tunnel to 127.0.0.1; --insecure goes on regardless",
        )
