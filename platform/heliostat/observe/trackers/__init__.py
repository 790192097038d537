"""Where metrics go besides the run's own files: TensorBoard, MLflow, Weights & Biases.

Each is an adapter of a few lines (``Tracker``), driven by a thread of its own (``BackgroundTracker``), since none of
them may stop or slow a run. Their libraries load when they start.
"""

from collections.abc import Callable

from heliostat.observe.trackers.background import BackgroundTracker
from heliostat.observe.trackers.mlflow import MlflowTracker
from heliostat.observe.trackers.tensorboard import TensorBoardTracker
from heliostat.observe.trackers.tracker import TrackedRun, Tracker
from heliostat.observe.trackers.wandb import WandbTracker

__all__ = ["TRACKERS", "BackgroundTracker", "TrackedRun", "Tracker"]

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
"""By their names in a recipe, which are those of their packages."""
