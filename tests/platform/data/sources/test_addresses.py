from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.sources.addresses import (
    ForbiddenAddressError,
    WebAddress,
    address_fault,
    parse_url,
    redirected,
)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://images.example.org/a/b.jpg", "/a/b.jpg"),
        ("https://images.example.org", "/"),
        ("HTTPS://Images.Example.ORG:443/x?y=1&z#part", "/x?y=1&z"),
        ("https://images.example.org?x", "/?x"),
        ("https://images.example.org/é b%20c", "/%C3%A9%20b%20c"),
        ("https://images.example.org/a@b", "/a@b"),
    ],
)
def test_parse_url__accepts_plain_addresses(url: str, target: str) -> None:
    assert parse_url(url) == WebAddress("images.example.org", 443, target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://example.org/x",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "gopher://example.org/x",
        "//example.org/x",
        "https:example.org",
        "https:///x",
        "https://user@example.org/x",
        "https://user:password@example.org/x",
        "https://example.org:8443/x",
        "https://example.org:22/x",
        "https://example.org:x/",
        "https://example.org:99999/",
        "https://2130706433/x",  # 127.0.0.1 as one number
        "https://0x7f000001/x",
        "https://0x7f.1/x",
        "https://0177.0.0.1/x",
        "https://127.1/x",
        "https://127.0.0.01/x",
        "https://example.org\\@127.0.0.1/x",
        "https://exa\nmple.org/x",
        "https://exa\tmple.org/x",
        "https://example.org/x\0y",
        "https://éxample.org/x",
        "https://%65xample.org/x",
        "https://example.org%2f@127.0.0.1/",
        "https://example..org/",
        "https://example.org./",
        "https://.example.org/",
        "https://[::1/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[fe80::1%25eth0]/",
        "https://" + "a" * 5000,
        "https://" + "a." * 200 + "org/",
        "https://①②⑦.⓪.⓪.①/",
    ],
)
def test_parse_url__refuses_everything_else_without_repeating_it(url: str) -> None:
    with pytest.raises(ForbiddenAddressError) as caught:
        parse_url(url)
    assert "password" not in str(caught.value)


@given(st.text(max_size=40).map("https://".__add__) | st.text(max_size=40))
def test_parse_url__any_text_is_an_address_in_its_one_spelling_or_forbidden(text: str) -> None:
    try:
        address = parse_url(text)
    except ForbiddenAddressError:
        return
    assert parse_url(address.url) == address
    assert "@" not in address.host and address.url.isascii() and address.url.isprintable()


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
        *("192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
        *("255.255.255.255", "168.63.129.16", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001::1", "2001:20::1", "3fff::1", "100::1"),
        *("4000::1", "localhost", ""),
    ],
)
def test_address_fault__refuses_what_is_not_public(address: str) -> None:
    assert address_fault(address) is not None


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "223.255.255.255"),
        *("2606:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1"),
    ],
)
def test_address_fault__allows_public_unicast(address: str) -> None:
    assert address_fault(address) is None


@given(st.ip_addresses())
def test_address_fault__never_allows_what_python_calls_special(address: object) -> None:
    ip = ip_address(str(address))
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    assert address_fault(str(ip)) is not None or not special


@pytest.mark.parametrize(
    ("location", "target"),
    [("/b", "/b"), ("b?c", "/x/b?c"), ("https://a.org/b", "/b"), ("https://A.org:443/b", "/b"), ("", "/x/a")],
)
def test_redirected__stays_on_the_host(location: str, target: str) -> None:
    assert redirected(parse_url("https://a.org/x/a"), location) == WebAddress("a.org", 443, target)


@pytest.mark.parametrize(
    "location",
    [
        *("https://b.org/", "//b.org/x", "http://a.org/", "https://169.254.169.254/latest/meta-data"),
        *("https://a.org:22/", "file:///etc/passwd", "https://u@a.org/", "https://a.org.evil.org/", "\\\\b.org"),
    ],
)
def test_redirected__goes_nowhere_else(location: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        redirected(parse_url("https://a.org/x/a"), location)
