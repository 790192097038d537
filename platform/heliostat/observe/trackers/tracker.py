"""What a tracker is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as trackers know it."""

    name: str
    url: str
    """Of the run's directory."""
    config: Mapping[str, object]
    """The resolved recipe by dotted key, without secrets."""
    folder: Path | None
    """For trackers that write files; None where there is none."""

    @property
    def id(self) -> str:
        """The same after every resume; runs of one name under two roots differ."""
        return f"{self.name}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"


class Tracker(Protocol):
    """Takes the metrics of one run. May raise, be slow or hang: see ``BackgroundTracker``."""

    def start(self, run: TrackedRun) -> None:
        """Open the run; it is the same one after a resume."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the finite numbers of one step."""

    def close(self) -> None:
        """Write the rest."""
