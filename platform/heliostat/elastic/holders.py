"""Snapshots of training state in the memory of other nodes, for the node that goes without a word.

Every worker's part of a snapshot lies with two holders: one on its own node, for when the other one's node goes, and
one on another node, for when its own does. A holder is a detached actor that owns the bytes: Ray's objects would die
with the process that made them. Parts are shards as in storage, with the hash of every chunk; a snapshot counts when
the parts of all workers are there. A holder takes nothing from an attempt older than one that it knows, and ends itself
when nobody has spoken to it for long.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat.checkpoint.format import CHUNK_BYTES
from heliostat.errors import FencedError, ObjectNotFoundError, SnapshotLostError
from heliostat.storage.store import Chunks

_log = logging.getLogger(__name__)

NAMESPACE = "heliostat"
_IDLE_S = 1800.0
"""Without a word for so long, its run is over and nobody has said so."""
_ANSWER_S = 60.0
_LOOK_S = 10.0
_IN_FLIGHT = 2
_KEPT = 2
"""Snapshots: the newest may not be whole yet."""


@dataclass(frozen=True, slots=True)
class PartName:
    """One worker's part of a snapshot."""

    attempt: int
    step: int
    rank: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a holder says of a part that is whole."""

    name: PartName
    key: str
    """Of its shard, as in storage."""
    manifest: str
    """Of the checkpoint that the snapshot is, as JSON, with no shard but this one."""
    lease_nonce: str
    """Of the attempt's entry in the commit log: a run that was deleted and begun anew has another one."""
    lines: bytes = b""
    """Of metrics up to the step that were not in the store yet."""


class Holder:
    """Keeps parts of snapshots in its memory, and has a hand on its node. An actor: one per run and node."""

    def __init__(self, idle_s: float = _IDLE_S) -> None:
        self._attempt = 0
        self._bytes: dict[str, list[bytes]] = {}
        self._parts: dict[str, Part] = {}
        self._heard_at = time.monotonic()
        self._idle_s = idle_s
        threading.Thread(target=self._end_when_forgotten, daemon=True).start()

    def begin(self, attempt: int, resumed: tuple[int, int] | None) -> None:
        """From now on older attempts are refused; of their snapshots only the one that is gone on from is kept."""
        self._fence(max(attempt, self._attempt))
        for key in list(self._bytes):
            part = self._parts.get(key)  # None: whoever put it will not end it any more
            if part is None or (part.name.attempt, part.name.step) != resumed:
                self._drop(key)

    def put(self, attempt: int, key: str, index: int, chunk: NDArray[np.uint8]) -> None:
        """One chunk of a shard, in order; the first one begins it anew."""
        self._fence(attempt)
        if index == 0:
            self._drop(key)
        chunks = self._bytes.setdefault(key, [])
        if index != len(chunks):
            raise SnapshotLostError(f"chunk {index} of {key} came after chunk {len(chunks) - 1}", "Take the next one")
        chunks.append(chunk.tobytes())

    def forget(self, key: str) -> None:
        """A shard that will not be whole: another holder has gone or refused."""
        if key not in self._parts:
            self._drop(key)

    def seal(self, part: Part) -> None:
        """The shard is whole. Snapshots before the last two go."""
        self._fence(part.name.attempt)
        if part.key not in self._bytes:
            raise SnapshotLostError(f"the holder has no bytes of {part.key}", "Take the next snapshot")
        self._parts[part.key] = part
        newest = sorted({(each.name.attempt, each.name.step) for each in self._parts.values()})[-_KEPT:]
        for key, each in list(self._parts.items()):
            if (each.name.attempt, each.name.step) not in newest:
                self._drop(key)

    def stay(self) -> None:
        """The run goes on, though nobody may need its snapshots for long."""
        self._heard_at = time.monotonic()

    def parts(self) -> list[Part]:
        """What is whole here."""
        self._heard_at = time.monotonic()
        return list(self._parts.values())

    def get(self, key: str, index: int) -> NDArray[np.uint8]:
        """One chunk of a shard."""
        self._heard_at = time.monotonic()
        chunks = self._bytes.get(key, [])
        if index >= len(chunks):
            raise ObjectNotFoundError(f"the holder has no chunk {index} of {key}", "Resume from storage")
        return np.frombuffer(chunks[index], dtype=np.uint8)

    def size_bytes(self) -> int:
        """Of all that it holds."""
        return sum(len(chunk) for chunks in self._bytes.values() for chunk in chunks)

    def end_process(self, pid: int) -> str:
        """Kill a process of this node that does not answer; what it was doing, as far as can be seen from outside."""
        self._heard_at = time.monotonic()
        seen = _seen_from_outside(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return seen

    def oom_kills(self) -> int:
        """Processes of this node that its kernel has ended for want of memory since it was started."""
        self._heard_at = time.monotonic()
        with suppress(OSError):
            for line in Path("/proc/vmstat").read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def _fence(self, attempt: int) -> None:
        self._heard_at = time.monotonic()
        if attempt < self._attempt:
            raise FencedError(
                f"attempt {self._attempt} has taken over from attempt {attempt}", "Stop this process: the run goes on"
            )
        self._attempt = attempt

    def _drop(self, key: str) -> None:
        self._bytes.pop(key, None)
        self._parts.pop(key, None)

    def _end_when_forgotten(self) -> None:
        while time.monotonic() - self._heard_at < self._idle_s:
            time.sleep(min(60.0, self._idle_s))
        os._exit(0)


def _seen_from_outside(pid: int) -> str:
    """State and kernel stack of a process that may be stopped; py-spy's view of its Python stack if that is there."""
    import shutil
    import subprocess

    lines = []
    for name in ("status", "wchan"):
        with suppress(OSError):
            lines.append(f"{name}: " + " | ".join(Path(f"/proc/{pid}/{name}").read_text().splitlines()[:4]))
    spy = shutil.which("py-spy")
    if spy is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            found = subprocess.run(  # noqa: S603 -- a number is all that is passed on
                [spy, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=5
            )
            lines.append(found.stdout or found.stderr)
    return "\n".join(lines)


def holder_name(run_id: str, node_id: str) -> str:
    """Of the actor, in the namespace of the platform."""
    return f"{_prefix(run_id)}{node_id}"


def _prefix(run_id: str) -> str:
    return f"holder:{run_id}:"


def ensure_holders(run_id: str, nodes: Iterable[str]) -> dict[str, Any]:
    """Handles of the holders of nodes, which are started where there are none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    make = ray.remote(num_cpus=0, max_restarts=0)(Holder)
    return {
        node: make.options(
            name=holder_name(run_id, node),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote()
        for node in nodes
    }


def known_holders(run_id: str) -> dict[str, Any]:
    """Handles of all holders of a run, by node; some may be dead."""
    import ray

    found = {}
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["namespace"] == NAMESPACE and each["name"].startswith(_prefix(run_id)):
            with suppress(ValueError):  # gone meanwhile
                found[each["name"].removeprefix(_prefix(run_id))] = ray.get_actor(each["name"], NAMESPACE)
    return found


def remove_holders(run_id: str) -> None:
    """At the end of a run."""
    import ray

    for holder in known_holders(run_id).values():
        ray.kill(holder)


def take_over(holders: Sequence[Any], attempt: int, resumed: tuple[int, int] | None) -> None:
    """A new attempt begins: holders forget what it does not need, and refuse older ones. Who does not answer has died.

    Args:
        holders: Of the run.
        attempt: The new one.
        resumed: Attempt and step of the snapshot that it goes on from, if it is one.
    """
    import ray

    calls = [holder.begin.remote(attempt, resumed) for holder in holders]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=_LOOK_S)


class HeldTarget:
    """Where ``write_shard`` puts a shard: into holders, all of which take it."""

    def __init__(self, holders: Sequence[Any], attempt: int) -> None:
        self._holders = holders
        self._attempt = attempt

    @property
    def url(self) -> str:
        """For messages."""
        return "memory:"

    def exists(self, key: str) -> bool:
        """A snapshot may be put again."""
        return False

    def put_chunks(self, key: str, chunks: Chunks) -> None:
        """Put an object.

        Raises:
            SnapshotLostError: a holder is gone or refuses.
        """
        import ray

        pending: list[Any] = []
        try:
            for index, chunk in enumerate(_gathered(chunks())):
                shared = ray.put(chunk)
                pending += [holder.put.remote(self._attempt, key, index, shared) for holder in self._holders]
                if len(pending) > _IN_FLIGHT * len(self._holders):
                    answers(pending[: len(self._holders)])
                    del pending[: len(self._holders)]
            answers(pending)
        except SnapshotLostError:
            for holder in self._holders:  # each snapshot is another shard: what is left of them would add up
                holder.forget.remote(key)
            raise

    def seal(self, part: Part) -> None:
        """The object is whole.

        Raises:
            SnapshotLostError: a holder is gone or refuses.
        """
        answers([holder.seal.remote(part) for holder in self._holders])


def answers(calls: Sequence[Any]) -> list[Any]:
    """Results of calls to holders.

    Raises:
        SnapshotLostError: one is gone, does not answer, or refuses.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return list(ray.get(list(calls), timeout=_ANSWER_S))
    except RayError as error:
        raise SnapshotLostError(
            f"a holder of snapshots does not do its part ({type(error).__name__})", "The next snapshot is tried again"
        ) from error


def _gathered(pieces: Iterable[bytes | memoryview]) -> Iterable[NDArray[np.uint8]]:
    """Pieces put together to chunks; each is good until the next one is asked for."""
    buffer, filled = np.empty(CHUNK_BYTES, dtype=np.uint8), 0
    for piece in pieces:
        left = np.frombuffer(piece, dtype=np.uint8)
        while len(left):
            taken, left = left[: CHUNK_BYTES - filled], left[CHUNK_BYTES - filled :]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            if filled == CHUNK_BYTES:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


@dataclass(frozen=True, slots=True)
class Replica:
    """A part and who has it."""

    part: Part
    holder: Any


def find_parts(holders: Sequence[Any]) -> list[Replica]:
    """All parts that holders have; who does not answer soon has none."""
    import ray
    from ray.exceptions import RayError

    calls = {holder.parts.remote(): holder for holder in holders}
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_LOOK_S) if calls else ([], [])
    found: list[Replica] = []
    for call in done:
        with suppress(RayError):
            found += [Replica(part, calls[call]) for part in ray.get(call)]
    return found


class HeldSource:
    """Reads shards of a snapshot from whichever holder has them, as ``CheckpointReader`` asks."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self._holders: dict[str, list[Any]] = {}
        for replica in replicas:
            self._holders.setdefault(replica.part.key, []).append(replica.holder)

    @property
    def url(self) -> str:
        """For messages."""
        return "memory:"

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of a shard.

        Raises:
            ObjectNotFoundError: no holder has them any more.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        index, offset = divmod(start, CHUNK_BYTES)
        for holder in self._holders.get(key, []):
            with suppress(RayError, RayTaskError):
                chunk = ray.get(holder.get.remote(key, index), timeout=_ANSWER_S)
                return bytes(memoryview(chunk)[offset : None if end is None else end - index * CHUNK_BYTES])
        raise ObjectNotFoundError(f"no holder has {key} any more", "Resume from storage")
