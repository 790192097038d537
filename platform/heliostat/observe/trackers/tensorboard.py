"""TensorBoard: event files in a folder."""

from collections.abc import Mapping
from typing import Any

from heliostat.observe.trackers.tracker import TrackedRun


class TensorBoardTracker:
    """Writes event files. After a resume the same folder goes on, and steps that are computed again replace theirs."""

    def __init__(self) -> None:
        self._run: TrackedRun | None = None
        self._writer: Any = None

    def start(self, run: TrackedRun) -> None:
        """Check that there is a folder and a library."""
        from torch.utils import tensorboard

        if run.folder is None:
            raise ValueError("there is no local folder to write to")
        self._new_writer = tensorboard.SummaryWriter
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per value."""
        if self._writer is None:  # only now is it known from which step on the files of an earlier attempt are void
            assert self._run is not None  # noqa: S101 -- started
            self._writer = self._new_writer(log_dir=str(self._run.folder), purge_step=step)
            table = "\n".join(f"| {key} | {value} |" for key, value in self._run.config.items())
            self._writer.add_text("config", f"| key | value |\n| --- | --- |\n{table}", step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write the rest."""
        if self._writer is not None:
            self._writer.close()
