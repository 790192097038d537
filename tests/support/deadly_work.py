"""Work on a Ray whose processes die: each kind of work loses the process that does the first of its items, once."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from heliostat.data.ray_tasks import ActorPool, Task, run_tasks


@dataclass
class DeadlyRun:
    """Does what ``run_tasks`` does, and kills; keeps a note of every item that anybody began or finished.

    Args:
        folder: For the notes.
    """

    folder: Path
    calls: int = 0

    def __call__(self, payloads: Iterator[tuple[int, bytes]], task: Task | ActorPool) -> Iterator[tuple[int, bytes]]:
        notes = self.folder / f"{self.calls:03}"
        notes.mkdir()
        self.calls += 1
        items = list(payloads)
        (notes / "items").write_text(json.dumps(len(items)))
        if isinstance(task, ActorPool):
            return run_tasks(items, ActorPool(_DeadlyMake(task.make, notes), task.gpus))
        return run_tasks(items, _Deadly(task, notes))

    def counts(self) -> list[tuple[int, int, int]]:
        """Of every call: items, how often one was begun, and how many processes died."""
        return [
            (
                json.loads((notes / "items").read_text()),
                len(list(notes.glob("begun-*"))),
                len(list(notes.glob("killed"))),
            )
            for notes in sorted(self.folder.iterdir())
        ]


@dataclass(frozen=True, slots=True)
class _DeadlyMake:
    make: Callable[[], Task]
    notes: Path

    def __call__(self) -> Task:
        return _Deadly(self.make(), self.notes)


@dataclass(frozen=True, slots=True)
class _Deadly:
    task: Task
    notes: Path

    def __call__(self, payload: bytes) -> bytes:
        (self.notes / f"begun-{os.urandom(8).hex()}").touch()
        try:
            (self.notes / "killed").touch(exist_ok=False)
        except FileExistsError:
            return self.task(payload)
        self.task(payload)  # the whole item, so that it is done once more
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")
