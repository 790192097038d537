"""Heliostat: exact, elastic pre-training of vision models on Ray clusters. Importing it loads neither torch nor Ray."""

from importlib.metadata import version

from heliostat.errors import HeliostatError

__version__ = version("heliostat")
__all__ = ["HeliostatError", "__version__"]
