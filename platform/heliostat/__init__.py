"""Heliostat: exact, elastic pre-training of vision models on Ray clusters. Importing it loads neither torch nor Ray."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from heliostat.errors import HeliostatError

if TYPE_CHECKING:
    from heliostat.models.weights.load import load_backbone
    from heliostat.training.planning.plan import plan

__version__ = version("heliostat")
__all__ = ["HeliostatError", "__version__", "load_backbone", "plan"]


def __getattr__(name: str) -> object:
    """What is imported when it is first asked for: ``load_backbone`` needs torch, ``plan`` reads recipes."""
    if name == "load_backbone":
        from heliostat.models.weights.load import load_backbone

        return load_backbone
    if name == "plan":
        from heliostat.training.planning.plan import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
