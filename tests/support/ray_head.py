"""A cluster of one node, started by ``ray start --head`` with token authentication, on loopback."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import descends_from, end_session

_UP_S = 60.0
_STORE_BYTES = 200_000_000


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class RayHead:
    """See the module.

    Attributes:
        folder: Where Ray keeps its files; short, since names of sockets may not be long.
        token: File of the token.
        cpus: That Ray hands out.
    """

    folder: Path
    token: Path
    cpus: int = 4
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    agent_port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """That Ray runs in; a client needs the two variables of it that are about the token."""
        scripts = str(Path(sys.executable).parent)
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **mine,
            "PATH": f"{scripts}:{mine.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }

    def start(self) -> None:
        """Start it, and wait until its dashboard answers."""
        with (self.folder / "head.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
                    *("--node-ip-address=127.0.0.1", f"--port={self.port}", "--dashboard-host=127.0.0.1"),
                    # Ray's own is the same for every Ray of a machine, and whoever comes second starts no jobs.
                    f"--dashboard-agent-listen-port={self.agent_port}",
                    *(f"--dashboard-port={self.dashboard_port}", f"--num-cpus={self.cpus}", "--disable-usage-stats"),
                    *(f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={self.folder / 'ray'}"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + _UP_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "head.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the dashboard does not come up"
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to everything that it consists of."""
        if self._process is not None:
            children = _descendants(self._process.pid)
            end_session(self._process.pid)
            for pid in children:
                end_session(pid)
            self._process.wait()

    def ask(self, path: str) -> str:
        """What the dashboard answers to whoever has the token.

        Raises:
            OSError: it refuses, or says nothing.
        """
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.address}{path}", headers=headers), timeout=30
        ) as said:
            return str(said.read().decode(errors="replace"))

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True


def _descendants(ancestor: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if descends_from(pid, ancestor)]


@contextmanager
def ray_head(cpus: int = 4) -> Iterator[RayHead]:
    """A head that runs; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    head = RayHead(folder, token, cpus)
    try:
        head.start()
        yield head
    finally:
        head.kill()
        shutil.rmtree(folder, ignore_errors=True)
