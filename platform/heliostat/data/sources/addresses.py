"""Which addresses of the internet a list of images may lead to. Pure functions.

Lists come from strangers. One that leads to this machine, to the network around it or to the cloud's metadata service
would read what only we can reach, so only public unicast addresses are allowed, and whatever is not plainly an https
address of a public host is refused by name.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 6890, RFC 4291.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from string import punctuation
from urllib.parse import quote, urljoin, urlsplit

HTTPS_PORT = 443
_MAX_URL = 4096
_V4_REFUSED = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # a public address by number, Azure's platform by route
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_V6_ALLOWED = IPv6Network("2000::/3")
"""Global unicast. Mapped, translated (NAT64), local and multicast addresses are all elsewhere."""
_V6_REFUSED = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them, which wraps IPv4
            "2001:db8::/32",
            "2002::/16",  # 6to4 wraps IPv4
            "2620:4f:8000::/48",
            "3ffe::/16",
            "3fff::/20",
        ),
    )
)
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z][a-z0-9-]{0,61}[a-z0-9]")
"""A name of DNS whose last label starts with a letter: ``0x7f.1`` and ``2130706433`` are addresses in disguise."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An https address in its parts: ``host`` in lower case, ``target`` its path and query."""

    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """The address in its one spelling."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == HTTPS_PORT else f":{self.port}"
        return f"https://{host}{port}{self.target}"


class ForbiddenAddressError(Exception):
    """An address that must not be asked; the text says why, without repeating it."""


def parse_url(url: str, port: int = HTTPS_PORT) -> WebAddress:
    """An https address.

    Raises:
        ForbiddenAddressError: another scheme, port or spelling, or credentials in it.
    """
    if len(url) > _MAX_URL or _CONTROL.search(url):
        raise ForbiddenAddressError(f"the address holds control characters or backslashes, or over {_MAX_URL} signs")
    try:
        parts = urlsplit(quote(url, safe=punctuation))  # non-ASCII paths are common, and mean their UTF-8
        asked_port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise ForbiddenAddressError("the address is not https://host/path") from error
    if parts.scheme != "https" or not host:
        raise ForbiddenAddressError("the address is not https://host/path")
    if "@" in parts.netloc:
        raise ForbiddenAddressError("the address holds credentials before an '@'")
    if asked_port not in (None, port):
        raise ForbiddenAddressError(f"the address asks for port {asked_port}, allowed is {port}")
    if not _HOST.fullmatch(host) and not _is_plain_ip(host):
        raise ForbiddenAddressError("the host is neither a name nor an address in its usual spelling")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return WebAddress(host, port, target)


def redirected(address: WebAddress, location: str) -> WebAddress:
    """Where a redirect leads.

    Raises:
        ForbiddenAddressError: to another host, or what ``parse_url`` refuses.
    """
    there = parse_url(urljoin(address.url, location), address.port)
    if there.host != address.host:
        raise ForbiddenAddressError(f"{address.host} redirects to another host")
    return there


def address_fault(address: str) -> str | None:
    """Why an IP address, as a resolver gives it, must not be asked; ``None`` for public unicast."""
    try:
        ip = ip_address(address)
    except ValueError:  # a zone, ``fe80::1%eth0``: never global
        return f"{address} is no public address"
    if _is_public(ip):
        return None
    return f"{ip} is no public address"


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _V4_REFUSED)
    return ip in _V6_ALLOWED and not any(ip in network for network in _V6_REFUSED)


def _is_plain_ip(host: str) -> bool:
    try:
        return str(ip_address(host)) == host and "%" not in host  # a zone is a matter of this machine
    except ValueError:
        return False
