"""Heliostat: exact, elastic pre-training of vision models on Ray clusters. Importing it loads neither torch nor Ray."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from heliostat.errors import HeliostatError

if TYPE_CHECKING:
    from heliostat.models.weights.load import load_backbone

__version__ = version("heliostat")
__all__ = ["HeliostatError", "__version__", "load_backbone"]


def __getattr__(name: str) -> object:
    """``load_backbone`` needs torch, which is imported when it is first asked for."""
    if name == "load_backbone":
        from heliostat.models.weights.load import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
