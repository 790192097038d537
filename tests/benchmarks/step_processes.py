"""Workers of the training step's bench: started, asked in turns, and never left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from heliostat.training.trainer import CPU_WORKER_ENV
from step_worker import Ended, Job, Ran, Started

_SCRIPT = Path(__file__).with_name("step_worker.py")
_ALLOCATOR_PREFIX = "MALLOC_"
_WAIT_POLICY = "OMP_WAIT_POLICY"


class WorkerFailedError(RuntimeError):
    """A worker ended without an answer; what it said is on standard error."""


def plain_environment() -> dict[str, str]:
    """What a script gets that sets nothing: this process's environment without allocator and thread settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != _WAIT_POLICY and not name.startswith(_ALLOCATOR_PREFIX)
    }


def platform_environment(device: str) -> dict[str, str]:
    """What the platform gives its workers; idle ones must leave the cores to the one whose turn it is."""
    own = {} if device.startswith("cuda") else CPU_WORKER_ENV
    # One compiling thread: torch's pool of compiling processes would outlive a worker that is killed.
    return plain_environment() | own | {_WAIT_POLICY: "PASSIVE", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Worker:
    """A process that does one job."""

    def __init__(self, name: str, job: Job, environment: Mapping[str, str]) -> None:
        self.name = name
        self.job = job
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def started(self) -> Started:
        """Wait until it is ready; to be called once, before anything else.

        Raises:
            WorkerFailedError: it ended instead; so do the other methods.
        """
        return Started(**self._answer())

    def run(self, count: int) -> Ran:
        """Some steps, or a longer measurement."""
        self._ask(f"run {count}")
        return Ran(**self._answer())

    def quit(self) -> Ended:
        """Let it end."""
        self._ask("quit")
        ended = Ended(**self._answer())
        self._process.wait()
        return ended

    def kill(self) -> None:
        """End it now, whatever it does; a process that has ended stays so."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _ask(self, request: str) -> None:
        if self._process.stdin is None:
            raise ValueError("the worker was started without a pipe")
        with suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise ValueError("the worker was started without a pipe")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailedError(f"the worker {self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def workers(jobs: Mapping[str, Job], environment: Mapping[str, str]) -> Iterator[dict[str, Worker]]:
    """Start one worker per job; all are gone when the context ends, however it ends."""
    running: dict[str, Worker] = {}
    try:
        for name, job in jobs.items():
            running[name] = Worker(name, job, environment)
        yield running
    finally:
        for worker in running.values():
            worker.kill()
