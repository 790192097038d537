"""What a process and everything below it use, from Linux's /proc: Ray's work is spread over a dozen processes.

The clock of /proc ticks a hundred times a second: measure over seconds.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Fields 4, 14 and 15 of proc(5), counted from the one after the name."""
_KINDS = (
    ("ray::Feeder", "feeder"),
    ("ray::ReadChunkTasks", "data_tasks"),
    ("ray::IDLE", "data_tasks"),
    ("ray::", "ray_actors"),
    ("raylet/raylet", "raylet"),
    ("gcs_server", "gcs"),
    ("/ray/", "ray_helpers"),
)
"""Kinds of processes by what their command lines contain, the first that fits."""
_NO_RAY = "own"


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process, so far."""

    kind: str
    """``own`` is the driver and whatever is not Ray's."""
    cpu_s: float
    own_mib: float
    """Memory that only it has: pages of Ray's object store, which several see, are none of it."""


def tree_use() -> dict[int, Use]:
    """What this process and everything below it have used, by process."""
    return {process: use for process in _descendants(os.getpid()) if (use := _use(process))}


def own() -> float:
    """Memory in MiB that only this process has."""
    use = _use(os.getpid())
    assert use is not None
    return use.own_mib


def cpu_spent(before: Mapping[int, Use], after: Mapping[int, Use]) -> dict[str, float]:
    """CPU seconds between two looks, by kind. What a process did that ended meanwhile is lost."""
    spent: defaultdict[str, float] = defaultdict(float)
    for process, use in after.items():
        spent[use.kind] += use.cpu_s - (before[process].cpu_s if process in before else 0.0)
    return dict(spent)


def kind_of(command: str) -> str:
    """What a process is for, from its command line."""
    return next((kind for part, kind in _KINDS if part in command), _NO_RAY)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _stat(folder):
            children.setdefault(int(fields[_PARENT]), []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _use(process: int) -> Use | None:
    folder = Path(f"/proc/{process}")
    fields = _stat(folder)
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = (folder / "status").read_text()
    except OSError:  # it has ended
        return None
    own_kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)
    ticks = int(fields[_USER]) + int(fields[_SYSTEM]) if fields else 0
    return Use(kind_of(command), ticks / _TICKS_PER_S, own_kib / 2**10)


def _stat(folder: Path) -> list[str]:
    """The fields of a process after its name; none if it has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
