import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support.backbones import same_weights, small_backbone

from heliostat.errors import InvalidUrlError, StoreFailedError, StoreUnreachableError
from heliostat.models.weights.download import is_official_name, official_file
from heliostat.models.weights.load import load_backbone


class Handler(BaseHTTPRequestHandler):
    """Serves what the test put into ``files``, each answer counted."""

    files: dict[str, bytes]
    asked: list[str]
    claimed_bytes: int | None
    redirect: str | None

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
        elif self.path in self.files:
            data = self.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(self.claimed_bytes or len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    handler = type("Served", (Handler,), {"files": {}, "asked": [], "claimed_bytes": None, "redirect": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HELIOSTAT_WEIGHTS_URL", f"http://127.0.0.1:{http.server_address[1]}")
        monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path / "cache"))
        yield handler
        http.shutdown()
        thread.join()


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_load_backbone__a_released_model_is_downloaded_once(server: type[Handler], tmp_path: Path) -> None:
    model = small_backbone()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    address = "/dinov2_vits14/dinov2_vits14_pretrain.pth"
    server.files[address] = (tmp_path / "x.pth").read_bytes()
    assert same_weights(load_backbone("dinov2_vits14"), model)
    assert official_file("dinov2_vits14").read_bytes() == server.files[address]
    assert server.asked == [address]
    assert left_behind(tmp_path / "cache") == ["dinov2_vits14_pretrain.pth"]


@pytest.mark.parametrize("name", ["dinov2_vitg14_reg", "dinov2_vitg14_reg4"])
def test_official_file__models_with_registers_have_two_names(name: str, server: type[Handler]) -> None:
    server.files["/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"] = b"weights"
    assert official_file(name).read_bytes() == b"weights"


def test_official_file__a_connection_that_ends_early_leaves_nothing(server: type[Handler], tmp_path: Path) -> None:
    server.files["/dinov2_vits14/dinov2_vits14_pretrain.pth"] = b"x" * 1000
    server.claimed_bytes = 2000
    with pytest.raises(StoreUnreachableError, match="could not be downloaded"):
        official_file("dinov2_vits14")
    assert left_behind(tmp_path / "cache") == []


def test_official_file__a_file_that_is_not_there(server: type[Handler], tmp_path: Path) -> None:
    with pytest.raises(StoreFailedError, match="answered with status 404"):
        official_file("dinov2_vitb14")
    assert left_behind(tmp_path / "cache") == []


def test_official_file__no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path))
    monkeypatch.setenv("HELIOSTAT_WEIGHTS_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachableError, match=r"refused.*set HELIOSTAT_WEIGHTS_URL to a mirror"):
        official_file("dinov2_vitb14")


@pytest.mark.parametrize("base", ["http://example.invalid/x", "ftp://127.0.0.1/x", "file:///etc", "x"])
def test_official_file__only_https_or_this_machine(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path))
    monkeypatch.setenv("HELIOSTAT_WEIGHTS_URL", base)
    with pytest.raises(InvalidUrlError, match="downloaded over https"):
        official_file("dinov2_vits14")


def test_official_file__a_redirect_off_https_is_refused(server: type[Handler], tmp_path: Path) -> None:
    server.redirect = "http://example.invalid/x"
    with pytest.raises(InvalidUrlError, match=r"not from http://example\.invalid"):
        official_file("dinov2_vits14")
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["dinov2_vits16", "dinov2_vits14_reg5", "../dinov2_vits14", "dinov2_vits14\n", ""])
def test_is_official_name__only_released_models(name: str) -> None:
    assert not is_official_name(name)


def test_official_file__a_cache_that_cannot_be_made_is_one_line(
    server: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOSTAT_CACHE", "/proc/x")
    with pytest.raises(StoreFailedError, match=r"/proc/x/weights.* cannot be written: .*Set HELIOSTAT_CACHE to"):
        official_file("dinov2_vits14")
    assert server.asked == []
