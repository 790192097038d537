import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.sources.source import Item, RefusedItem
from heliostat.data.sources.urls import Network, UrlSource, shown_url

HOST = "images.test"
Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return send


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(65536))


def trickle(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(200):
        request.wfile.write(b"x")
        time.sleep(0.05)


class Server(ThreadingHTTPServer):
    """Answers by path; remembers the Host header of each request."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients break off on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append((self.path, self.headers["Host"]))
        answers = self.server.answers[self.path]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A certificate for a host that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / f"{host}.pem", folder / f"{host}.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(pem, pkcs8, none))
    return chain, secret


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture
def server(certificates: tuple[Path, Path]) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates)
    with Server(context) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def network(server: Server, certificates: tuple[Path, Path]) -> Network:
    """Reaches the server, and no other, under its name."""
    return Network(
        port=server.server_address[1],
        ca_file=str(certificates[0]),
        timeout_s=5.0,
        resolve=lambda host, port: ["127.0.0.1"],
        fault=lambda address: None if address == "127.0.0.1" else f"{address} is not the server",
    )


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.data.sources.urls._PAUSE_S", 0.01)


def read(tmp_path: Path, network: Network, *lines: str, limits: ImageLimits | None = None) -> list[Item | RefusedItem]:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(lines))
    source = UrlSource(str(listed), network)
    return [item for unit in source.units() for item in source.read(unit, limits or ImageLimits())]


def fetch(tmp_path: Path, network: Network, path: str, limits: ImageLimits | None = None) -> bytes | Reason:
    (found,) = read(tmp_path, network, f"https://{HOST}:{network.port}{path}", limits=limits)
    return found.data if isinstance(found, Item) else found.reason


def test_urls__are_fetched_in_order_by_name_over_tls(tmp_path: Path, server: Server, network: Network) -> None:
    server.answers = {f"/{number}": [answer(body=bytes([number]))] for number in range(20)}
    base = f"https://{HOST}:{network.port}"
    found = read(tmp_path, network, "# images", *(f"{base}/{number}" for number in range(20)))
    assert [item.data for item in found if isinstance(item, Item)] == [bytes([number]) for number in range(20)]
    assert [item.source for item in found] == [f"{base}/{number}" for number in range(20)]
    assert {host for _, host in server.asked} == {f"{HOST}:{network.port}"}


def test_urls__a_csv_has_labels(tmp_path: Path, server: Server, network: Network) -> None:
    server.answers = {"/a": [answer(body=b"a")]}
    (tmp_path / "list.csv").write_text(f"label,url\ncat,https://{HOST}:{network.port}/a\n")
    source = UrlSource(str(tmp_path / "list.csv"), network)
    (item,) = (item for unit in source.units() for item in source.read(unit))
    assert isinstance(item, Item) and (item.label, item.data, item.place) == ("cat", b"a", None)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([answer(404)], Reason.UNREADABLE),
        ([answer(503), answer(body=b"x")], b"x"),
        ([answer(503)], Reason.UNREADABLE),
        ([answer(body=b"x" * 101)], Reason.TOO_MANY_BYTES),
        ([answer(body=b"", Content_Length=str(2**60))], Reason.TOO_MANY_BYTES),
        ([endless], Reason.TOO_MANY_BYTES),
        ([answer(body=b"x", Content_Length="50")], Reason.UNREADABLE),
        ([answer(302, Location="/good")], b"good"),
        ([answer(302, Location="/loop")], Reason.FORBIDDEN_ADDRESS),
        ([answer(302)], Reason.FORBIDDEN_ADDRESS),
        ([answer(307, Location="https://169.254.169.254/latest/meta-data/")], Reason.FORBIDDEN_ADDRESS),
        ([answer(301, Location="https://other.test/x")], Reason.FORBIDDEN_ADDRESS),
        ([answer(301, Location="http://images.test/x")], Reason.FORBIDDEN_ADDRESS),
        ([answer(301, Location="file:///etc/passwd")], Reason.FORBIDDEN_ADDRESS),
    ],
)
def test_urls__what_a_server_may_answer(
    tmp_path: Path, server: Server, network: Network, answers: list[Answer], expected: bytes | Reason
) -> None:
    server.answers = {
        "/x": list(answers),
        "/good": [answer(body=b"good")],
        "/loop": [answer(302, Location="/loop")],
    }
    assert fetch(tmp_path, network, "/x", ImageLimits(max_bytes=100)) == expected


def test_urls__time_is_bounded_whatever_comes(tmp_path: Path, server: Server, network: Network) -> None:
    server.answers = {"/x": [trickle]}
    assert fetch(tmp_path, replace(network, timeout_s=0.4), "/x") is Reason.UNREADABLE


def test_urls__a_certificate_of_another_host_is_refused(tmp_path: Path, server: Server, network: Network) -> None:
    server.answers = {"/x": [answer(body=b"x")]}
    (found,) = read(tmp_path, network, f"https://other.test:{network.port}/x")
    assert isinstance(found, RefusedItem) and found.reason is Reason.UNREADABLE
    assert fetch(tmp_path, replace(network, ca_file=None), "/x") is Reason.UNREADABLE  # nobody vouches for it
    assert server.asked == []


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"], ["64:ff9b::a00:1"]],
)
def test_urls__a_name_that_leads_inside_is_refused(
    tmp_path: Path, server: Server, network: Network, addresses: list[str]
) -> None:
    rules = replace(Network(), port=network.port, ca_file=network.ca_file, resolve=lambda host, port: addresses)
    assert fetch(tmp_path, rules, "/x") is Reason.FORBIDDEN_ADDRESS
    assert server.asked == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "127.1"])
def test_urls__the_real_rules_never_reach_this_machine(
    tmp_path: Path, server: Server, network: Network, host: str
) -> None:
    rules = Network(port=network.port, ca_file=network.ca_file)
    (found,) = read(tmp_path, rules, f"https://{host}:{network.port}/x")
    assert isinstance(found, RefusedItem) and found.reason is Reason.FORBIDDEN_ADDRESS
    assert server.asked == []


def test_urls__a_name_is_resolved_once(tmp_path: Path, server: Server, network: Network) -> None:
    """A second answer that leads elsewhere (DNS rebinding) is never asked for, redirects and retries included."""
    server.answers = {"/x": [answer(503), answer(302, Location="/y")], "/y": [answer(body=b"y")]}
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    assert fetch(tmp_path, replace(network, resolve=rebinding), "/x") == b"y"
    assert asked == [HOST]


def test_urls__secrets_are_not_shown(tmp_path: Path, network: Network) -> None:
    shown = shown_url("https://user:password@a.org/x.jpg?X-Amz-Signature=secret#part")
    assert shown.startswith("https://a.org/x.jpg?") and not {"password", "secret"} & set(shown.split("/"))
    assert "secret" not in shown and "user" not in shown
    assert shown_url("https://a.org/?a") != shown_url("https://a.org/?b")
    (found,) = read(tmp_path, network, "https://user:password@a.org/x?token=secret")
    assert isinstance(found, RefusedItem) and "password" not in repr(found) and "secret" not in repr(found)
