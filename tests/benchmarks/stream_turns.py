"""The streaming part of bench_ingest.py: starts the peers of ``stream_peers.py``, asks them in turns, and compares."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from frame import Spread, tell
from heliostat.training.feed import KEEP_MEMORY_ENV
from stream_peers import PROCESSES, Setup, command_line

NAMES = ("inline", "ray", "dataloader", "webdataset")


class PeerFailedError(RuntimeError):
    """A peer ended without an answer; what it said is on standard error."""


class PeerProcess:
    """A peer in a process of its own."""

    def __init__(self, name: str, setup: Setup) -> None:
        self._name = name
        # What the platform gives processes that make crops, for all: ratios compare implementations.
        environment = {**os.environ, **KEEP_MEMORY_ENV, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command_line(name, setup), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """One request, and its answer; see ``receive``."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        """One request."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """The answer to a request.

        Raises:
            PeerFailedError: there is none.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailedError(f"the peer {self._name} ended with status {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Let it end what it has started, then itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


Running = dict[str, list[PeerProcess]]
"""By name; all of a name work at once."""


@contextmanager
def peers(setup: Setup) -> Iterator[Running]:
    """Start them; all are gone when the context ends."""
    running: Running = {name: [] for name in NAMES}
    try:
        for name in NAMES:
            for _ in range(PROCESSES if name == "inline" else 1):
                running[name].append(PeerProcess(name, setup))
        yield running
    finally:
        for each in running.values():
            for peer in each:
                peer.end()


class Turns:
    """What the peers answered, turn by turn.

    Args:
        running: the peers.
        images: what each name makes per turn.
        runs: turns, after one to warm up.
    """

    def __init__(self, running: Running, images: int, runs: int) -> None:
        started_s = time.monotonic()
        self._answers: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
        for turn in range(-1, runs):
            for name, each in running.items():
                answer = _turn(each, images)
                if turn >= 0:
                    self._answers[name].append(answer)
            label = "warm-up" if turn < 0 else f"turn {turn + 1} of {runs}"
            tell(f"streaming: {label} of {', '.join(running)}; {time.monotonic() - started_s:.0f} s")

    def per_cpu_s(self, name: str) -> Spread:
        """Images per CPU-second of all processes of a peer."""
        return Spread(tuple(each["images"] / sum(each["cpu_s"].values()) for each in self._answers[name]))

    def per_s(self, name: str) -> Spread:
        """Images per second of wall time."""
        return Spread(tuple(each["images"] / each["wall_s"] for each in self._answers[name]))

    def cpu_ms_per_image(self, name: str) -> dict[str, float]:
        """By kind of process, over all turns."""
        spent = sum((Counter(each["cpu_s"]) for each in self._answers[name]), Counter[str]())
        images = sum(each["images"] for each in self._answers[name])
        return {kind: round(1000 * seconds / images, 3) for kind, seconds in spent.most_common()}


def _turn(running: list[PeerProcess], images: int) -> dict[str, Any]:
    for peer in running:
        peer.send("run", images=images // len(running))
    answers = [peer.receive() for peer in running]
    return {
        "images": sum(each["images"] for each in answers),
        "wall_s": max(each["wall_s"] for each in answers),
        "cpu_s": sum((Counter(each["cpu_s"]) for each in answers), Counter[str]()),
    }
