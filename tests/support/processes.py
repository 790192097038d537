"""The processes of a session: what a command that was started in one of its own has left running."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_MAPPED = re.compile(rf" {SHARED_MEMORY}/(.+)$", re.MULTILINE)


def session_of(leader: int) -> Iterator[tuple[int, str]]:
    """Pid and title of each process in the session; zombies, which only wait for their parent, are none."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (
                os.getsid(int(entry.name)) == leader
                and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def titled(beginnings: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Pid and title of each process of this machine whose title begins so."""
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if entry.name.isdigit() and title.startswith(beginnings):
            yield int(entry.name), title


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process was started by another one, or by one that it has started."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def kill_own(title: str) -> list[int]:
    """SIGKILL to the first process whose title begins so and that this process, or a child of it, has started."""
    mine = [pid for pid, _ in titled((title,)) if descends_from(pid, os.getpid())][:1]
    for pid in mine:
        os.kill(pid, signal.SIGKILL)
    return mine


def end_session(leader: int) -> None:
    """SIGKILL to all processes of a session that a test has started."""
    for pid, _ in session_of(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def segments() -> set[str]:
    """Names of shared memory of this user on this machine."""
    found = set()
    for entry in SHARED_MEMORY.iterdir():
        with suppress(FileNotFoundError):  # it has gone meanwhile
            if entry.stat().st_uid == os.getuid():
                found.add(entry.name)
    return found


def segments_used(is_meant: Callable[[int], bool]) -> set[str]:
    """Names of the shared memory that the processes use that are meant."""
    found: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_meant(int(entry.name)):
            with suppress(OSError):  # it has ended, or is another user's
                found.update(_MAPPED.findall((entry / "maps").read_text()))
    return found
