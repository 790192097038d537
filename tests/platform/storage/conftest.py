"""The stores that the shared behaviour is held against, and the one behind the proxy that harms requests."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fault_proxy import FaultProxy

from heliostat.storage import Store, open_store
from heliostat.storage.retries import retry_counts
from heliostat.storage.s3 import S3Store


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_root"))


@pytest.fixture
def s3_store(fault_proxy: FaultProxy, s3_root: str) -> S3Store:
    """An empty store behind ``fault_proxy``."""
    store = open_store(s3_root)
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def retried() -> Callable[[], Counter[str]]:
    """Counts of retries since the test began."""
    before = Counter(retry_counts())
    return lambda: Counter(retry_counts()) - before
