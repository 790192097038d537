"""A real S3 server (SeaweedFS) on loopback, for fixtures and for whatever else runs against one."""

import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "heliostat-test"
SECRET_KEY = "heliostat-canary-secret"
NEXT_ACCESS_KEY = "heliostat-next"
NEXT_SECRET_KEY = "heliostat-next-canary-secret"
"""Of the same user: what credentials are renewed to."""
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


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Endpoint of a SeaweedFS with one bucket, on ports that were free a moment ago; gone at the end, its folder not.

    Raises:
        RuntimeError: it did not start.
    """
    for start in range(_STARTS):
        place = folder / str(start)
        place.mkdir(parents=True)
        ports = _free_ports(len(_PORT_FLAGS))
        endpoint = f"http://127.0.0.1:{ports[0]}"
        process = _start(place, ports)
        try:
            if _answers(process, ports[0]):
                _make_bucket(endpoint)
                yield endpoint
                return
        finally:
            _stop(process, ports)
        print(f"start {start + 1} of SeaweedFS failed:", (place / "log").read_text()[-2000:])
    raise RuntimeError("SeaweedFS did not start; its last lines are above")


def s3_environment(endpoint: str) -> dict[str, str]:
    """Settings that lead to the server and to nothing of the machine's own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_at_once:
        sockets = [open_at_once.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _start(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    flags = [f"-{flag}={port}" for flag, port in zip(_PORT_FLAGS, ports, strict=True)]
    pairs = ((ACCESS_KEY, SECRET_KEY), (NEXT_ACCESS_KEY, NEXT_SECRET_KEY))
    user = {"name": "tests", "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    keys = [{"accessKey": access, "secretKey": secret} for access, secret in pairs]
    (folder / "users.json").write_text(json.dumps({"identities": [user | {"credentials": keys}]}))
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
        f"-s3.config={folder}/users.json",
        "-s3.autoCreateBucket=false",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        f"-filer.localSocket={folder}/filer.sock",
        f"-s3.localSocket={folder}/s3.sock",
    ]
    environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
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
