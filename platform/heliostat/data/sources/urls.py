"""Images of a list of https addresses, fetched with the suspicion that such lists deserve.

A host is resolved once. If any of its addresses is not public, it is refused; else the connection goes to exactly the
address that was looked at, so that a second answer of the DNS cannot lead elsewhere, with the certificate checked for
the host's name. Redirects stay on the host. Proxies of the environment are not used: they would resolve names again.
Time and bytes are bounded whatever the server does.
"""

import errno
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from heliostat import __version__
from heliostat.data.images import ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.addresses import (
    HTTPS_PORT,
    ForbiddenAddressError,
    WebAddress,
    address_fault,
    parse_url,
    redirected,
)
from heliostat.data.sources.lists import Entry, ListSource
from heliostat.data.sources.names import cause_of
from heliostat.data.sources.source import Item, RefusedItem
from heliostat.errors import RejectedImageError

MAX_REDIRECTS = 3
_SILENCE_S = 10.0
"""Longest wait for a connection, or for the next bytes."""
_CHUNK = 256 * 1024
_PAUSE_S = 1.0
"""Before the second attempt."""
FAILURES = (HTTPError, HTTPException, OSError)
"""What a host that cannot be reached, or breaks off, ends in."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({429, 500, 502, 503, 504})


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Network:
    """What is reached, and how. The defaults are the rules; only tests have others."""

    port: int = HTTPS_PORT
    ca_file: str | None = None
    timeout_s: float = 60.0
    resolve: Callable[[str, int], list[str]] = resolve
    fault: Callable[[str], str | None] = address_fault


PUBLIC_INTERNET = Network()


@dataclass(frozen=True)
class UrlSource(ListSource):
    """A list with one https address per line, or a CSV file with the columns ``url`` and ``label``."""

    network: Network = PUBLIC_INTERNET

    def fetch(self, entry: Entry, limits: ImageLimits) -> Item | RefusedItem:
        """See ``ListSource.fetch``."""
        source = shown_url(entry.address)
        try:
            data = fetch_url(entry.address, limits, self.network)
        except ForbiddenAddressError as error:
            return RefusedItem(source, Reason.FORBIDDEN_ADDRESS, str(error))
        except RejectedImageError as error:
            return RefusedItem(source, Reason(error.reason), error.fact)
        except FAILURES as error:
            return RefusedItem(source, Reason.UNREADABLE, f"the address cannot be read: {_cause(error)}")
        return Item(source, entry.label, data, None)


def shown_url(url: str) -> str:
    """An address for people, without what may be a secret: signed addresses keep theirs in the query."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    mark = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}"[:500] + mark


def fetch_url(url: str, limits: ImageLimits, network: Network = PUBLIC_INTERNET) -> bytes:
    """What an https address answers with. Tried twice if that may help.

    Raises:
        ForbiddenAddressError: it must not be asked.
        RejectedImageError: there is no such thing, or more bytes than the limit.
        HTTPError, HTTPException, OSError: the host cannot be reached or breaks off.
    """
    address = parse_url(url, network.port)
    peers = _pinned(address, network)
    try:
        return _fetch(address, peers[0], limits, network)
    except FAILURES:
        time.sleep(_PAUSE_S)
        return _fetch(address, peers[-1], limits, network)


class _PassingError(HTTPError):
    """An answer that may be another one soon."""


class _PinnedConnection(HTTPSConnection):
    """A connection over a socket that is connected already."""

    def __init__(self, peer: socket.socket, address: WebAddress, ca_file: str | None) -> None:
        super().__init__(address.host, address.port, timeout=_SILENCE_S, ca_certs=ca_file, cert_reqs="CERT_REQUIRED")
        self._peer = peer

    def _new_conn(self) -> socket.socket:
        return self._peer


def _pinned(address: WebAddress, network: Network) -> list[str]:
    """The IP addresses of a host, all of them allowed."""
    peers = network.resolve(address.host, address.port)
    for peer in peers:
        if fault := network.fault(peer):
            raise ForbiddenAddressError(f"{address.host} is {fault}" if address.host != peer else fault)
    return peers


def _fetch(address: WebAddress, peer: str, limits: ImageLimits, network: Network) -> bytes:
    deadline = time.monotonic() + network.timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        with _answer(address, peer, deadline, network) as response:
            if response.status not in _REDIRECTS:
                data = _body(response, limits)
                if time.monotonic() >= deadline:  # then the end of the body is not the server's
                    raise TimeoutError(errno.ETIMEDOUT, f"no whole answer within {network.timeout_s:g} s")
                return data
            address = redirected(address, response.headers.get("Location", ""))
    raise ForbiddenAddressError(f"{address.host} redirects more than {MAX_REDIRECTS} times")


@contextmanager
def _answer(address: WebAddress, peer: str, deadline: float, network: Network) -> Iterator[BaseHTTPResponse]:
    """The beginning of an answer; the connection ends with the block, or at the deadline wherever it is then."""
    left_s = deadline - time.monotonic()
    with socket.create_connection((peer, address.port), timeout=max(0.1, min(_SILENCE_S, left_s))) as plain:
        watched = plain.dup()  # TLS takes the socket over; its copy can still be shut down
        timer = threading.Timer(max(0.0, left_s), _shut_down, [watched])
        timer.daemon = True
        timer.start()
        connection = _PinnedConnection(plain, address, network.ca_file)
        try:
            headers = {"Accept-Encoding": "identity", "User-Agent": f"heliostat/{__version__}"}
            connection.request("GET", address.target, headers=headers, preload_content=False, decode_content=False)
            yield connection.getresponse()
        finally:
            timer.cancel()
            connection.close()
            watched.close()


def _shut_down(watched: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        watched.shutdown(socket.SHUT_RDWR)


def _body(response: BaseHTTPResponse, limits: ImageLimits) -> bytes:
    if response.status in _PASSING:
        raise _PassingError(f"the server answers with status {response.status}")
    if response.status != 200:
        raise RejectedImageError(
            f"the server answers with status {response.status}", "Correct the list", Reason.UNREADABLE
        )
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise too_many_bytes(int(length), limits)
    data = bytearray()
    while chunk := response.read(_CHUNK):
        data += chunk
        if len(data) > limits.max_bytes:
            raise too_many_bytes(len(data), limits)
    return bytes(data)


def _cause(error: Exception) -> str:
    """The kind of a failure: its text may repeat the address."""
    return cause_of(error) if isinstance(error, OSError) else type(error).__name__
