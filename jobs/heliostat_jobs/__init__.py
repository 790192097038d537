"""What users run: the command line, the Python client, and one module per kind of job."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliostat_jobs.submission.client import Client, JobHandle

__all__ = ["Client", "JobHandle"]


def __getattr__(name: str) -> object:
    """The client is imported when it is first asked for: it brings Ray with it."""
    if name in __all__:
        from heliostat_jobs.submission import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
