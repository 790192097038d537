"""Fixtures that more than one root's tests use: a real S3 server on loopback."""

import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from hypothesis import settings
from support.fault_proxy import FaultProxy

# Tests share few cores with each other's processes; threads of one calculation would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("heliostat", deadline=None)
settings.load_profile("heliostat")

ACCESS_KEY = "heliostat-test"
SECRET_KEY = "heliostat-canary-secret"
BUCKET = "heliostat"
_STARTS = 3
_START_TIMEOUT_S = 30.0
_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of a SeaweedFS with one bucket, on ports that were free a moment ago; gone at the end, files too."""
    for attempt in range(_STARTS):
        folder = tmp_path_factory.mktemp("seaweedfs")
        ports = _free_ports(len(_PORT_FLAGS))
        endpoint = f"http://127.0.0.1:{ports[0]}"
        process = _start(folder, ports)
        try:
            if _answers(process, ports[0]):
                _make_bucket(endpoint)
                yield endpoint
                return
        finally:
            _stop(process, ports)
        print(f"start {attempt + 1} of SeaweedFS failed:", (folder / "log").read_text()[-2000:])
    pytest.fail("SeaweedFS did not start; its last lines are above")


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty prefix; the environment leads to the server and holds nothing of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


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


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_at_once:
        sockets = [open_at_once.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _start(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    flags = [f"-{flag}={port}" for flag, port in zip(_PORT_FLAGS, ports, strict=True)]
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *flags,
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        f"-filer.localSocket={folder}/filer.sock",
        f"-s3.localSocket={folder}/s3.sock",
    ]
    environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _make_bucket(endpoint: str) -> None:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:  # the port opens before the server can write
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="warm-up", Body=b"1")
            client.close()
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes], ports: list[int]) -> None:
    # SIGTERM takes four seconds and saves what nobody will read.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for port in ports:  # SeaweedFS names these sockets itself and leaves them behind when it is killed
        for leftover in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            leftover.unlink(missing_ok=True)
