"""Credentials that expire or are replaced while a store is in use."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.fault_proxy import FaultProxy, Kind, Rule

from heliostat.errors import StoreDeniedError
from heliostat.storage import Store, open_store
from heliostat.storage.s3 import S3Store

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("quick_retries")]

OLD = "AKIAOLDKEY"
CANARY = "canary-old-secret"


@pytest.fixture
def credentials(s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds credentials which the proxy does not let through, in place of the environment's."""
    open_store(s3_store.url).put("k", b"v")  # another store's client: this one's has not been made yet
    path = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    _write_credentials(path, OLD, CANARY)
    return path


def _write_credentials(path: Path, key: str, secret: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


@pytest.mark.parametrize(
    "action",
    [
        lambda store: store.get("k"),
        lambda store: store.put("k", b"v"),
        lambda store: store.size("k"),
        lambda store: list(store.list()),
    ],
)
def test_store__with_expired_credentials_goes_on_when_the_file_has_new_ones(
    action: Callable[[Store], object], fault_proxy: FaultProxy, s3_store: S3Store, credentials: Path
) -> None:
    fault_proxy.plan(Rule("expired", contains=f"Credential={OLD}/", times=None))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(action, s3_store.patient(60)) for _ in range(2)]
        while fault_proxy.faults["expired"] < 5:
            assert not any(each.done() for each in waiting)
            time.sleep(0.01)
        _write_credentials(credentials, "heliostat-test", "heliostat-canary-secret")
        assert waiting[0].result() == waiting[1].result()


def test_store__refused_with_a_key_that_was_just_replaced_reads_the_new_one(
    fault_proxy: FaultProxy, s3_store: S3Store, credentials: Path
) -> None:
    fault_proxy.plan(Rule("denied", contains=f"Credential={OLD}/", times=None))
    with pytest.raises(StoreDeniedError, match="AccessDenied"):
        s3_store.put("k", b"v")
    _write_credentials(credentials, "heliostat-test", "heliostat-canary-secret")
    s3_store.put("k", b"v")
    assert fault_proxy.faults == {"denied": 3}  # two by the first, one by the second


@pytest.mark.parametrize(("kind", "code"), [("expired", "ExpiredToken"), ("denied", "AccessDenied")])
def test_store__whose_credentials_stay_refused_says_so_without_them(
    kind: Kind,
    code: str,
    fault_proxy: FaultProxy,
    s3_store: S3Store,
    credentials: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("heliostat.storage.s3_backoff.STALL_S", 0.0)
    fault_proxy.plan(Rule(kind, times=None))
    for action in (lambda: s3_store.patient(0.5).get("k"), lambda: s3_store.patient(0.5).size("k")):
        with pytest.raises(StoreDeniedError, match=rf"HS-STOR-005: s3://.* \({code}\)") as caught:
            action()
        assert CANARY not in str(caught.value) + caplog.text
        assert OLD not in str(caught.value) + caplog.text
