"""Fixtures that more than one root's tests use: a real S3 server on loopback."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import settings
from support import seaweedfs
from support.fault_proxy import FaultProxy

# Tests share few cores with each other's processes; threads of one calculation would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("heliostat", deadline=None)
settings.load_profile("heliostat")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of a SeaweedFS with one bucket."""
    with seaweedfs.s3_server(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty prefix; the environment leads to the server and holds nothing of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in seaweedfs.s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return f"s3://{seaweedfs.BUCKET}/{uuid4().hex}"


@pytest.fixture
def fault_proxy(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy to the real server that does no harm yet; stores first used from now on go through it."""
    with FaultProxy(s3_server).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of S3 wait milliseconds: tests with many faults would wait for nothing else."""
    monkeypatch.setattr("heliostat.storage.s3_backoff.FIRST_WAIT_S", 0.002)
    monkeypatch.setattr("heliostat.storage.s3_backoff.MAX_WAIT_S", 0.05)
