"""Released weights by name, downloaded once."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from heliostat.config.model import ModelConfig
from heliostat.errors import InvalidUrlError, StoreFailedError, StoreUnreachableError

BASE_VARIABLE = "HELIOSTAT_WEIGHTS_URL"
CACHE_VARIABLE = "HELIOSTAT_CACHE"
_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
_NAME = re.compile(r"(dinov2_vit[sblg]14)(_reg4?)?")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_SILENCE_S = 30.0
_SLOWEST_BYTES_PER_S = 50_000
_CHUNK_BYTES = 1 << 20


RELEASED_GRID = 37
"""Patches along a side for which released models have positions: 518 / 14."""
_ARCHS = {"s": "vit_s", "b": "vit_b", "l": "vit_l", "g": "vit_g"}


def released_model(name: str) -> ModelConfig | None:
    """The architecture of a released model, from its name alone; None if there is none of this name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return ModelConfig.model_validate({"arch": _ARCHS[match[1][-3]], "registers": 4 if match[2] else 0})


def is_official_name(name: str) -> bool:
    """Whether this names a released model: ``dinov2_vits14``, ``dinov2_vitb14_reg4`` …"""
    return _NAME.fullmatch(name) is not None


def official_file(name: str) -> Path:
    """The file of a released model, from the cache or downloaded into it.

    The cache is ``HELIOSTAT_CACHE`` or ``~/.cache/heliostat``; the server is ``HELIOSTAT_WEIGHTS_URL`` or the one
    where DINOv2 was released. A file appears in the cache whole or not at all.

    Raises:
        InvalidUrlError: the server is neither https nor on this machine.
        StoreUnreachableError: nothing answers, or it stopped in the middle.
        StoreFailedError: the server does not have it, or the cache cannot be written.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no released model")
    file_name = f"{match[1]}{'_reg4' if match[2] else ''}_pretrain.pth"
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "heliostat") / "weights"
    path = cache / file_name
    if not os.path.exists(path):  # noqa: PTH110 -- unlike Path.exists, no error for a folder that cannot be entered
        base = os.environ.get(BASE_VARIABLE) or _BASE_URL
        with _cache_failures(cache):
            cache.mkdir(parents=True, exist_ok=True)
            _download(f"{base.rstrip('/')}/{match[1]}/{file_name}", path)
    return path


@contextmanager
def _cache_failures(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # those of the connection are errors of ours by now
        reason = error.strerror or type(error).__name__
        raise StoreFailedError(
            f"{cache}, the cache of downloaded weights, cannot be written: {reason}",
            f"Set {CACHE_VARIABLE} to a folder that can be written and has room",
        ) from error


def _download(url: str, path: Path) -> None:
    _check_scheme(url)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        partial = Path(file.name)
        try:
            _fetch(url, file)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _fetch(url: str, file: IO[bytes]) -> None:
    opener = build_opener(_NoDowngrade)
    request = Request(url, headers={"User-Agent": "heliostat"})  # noqa: S310 -- the scheme was checked
    try:
        with opener.open(request, timeout=_SILENCE_S) as answer:
            expected_bytes = int(answer.headers.get("Content-Length") or 0)
            deadline = time.monotonic() + _SILENCE_S + expected_bytes / _SLOWEST_BYTES_PER_S
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"fewer than {_SLOWEST_BYTES_PER_S} bytes per second")
        if not expected_bytes or file.tell() != expected_bytes:
            raise TimeoutError(f"the connection ended after {file.tell()} of {expected_bytes or 'unknown'} bytes")
    except HTTPError as error:
        error.close()
        raise StoreFailedError(f"{url} was answered with status {error.code}", "Download the file yourself") from error
    except (OSError, HTTPException, ValueError) as error:
        raise StoreUnreachableError(
            f"{url} could not be downloaded: {error}",
            f"Try again, download it elsewhere and give its path, or set {BASE_VARIABLE} to a mirror",
        ) from error


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise InvalidUrlError(
        f"weights are downloaded over https, not from {parts.scheme or 'nothing'}://{parts.hostname or ''}",
        f"Set {BASE_VARIABLE} to an https address",
    )


class _NoDowngrade(HTTPRedirectHandler):
    """Follows redirects, but never from https to something that anyone on the way can change."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The next request; refused where it is neither https nor on this machine."""
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
