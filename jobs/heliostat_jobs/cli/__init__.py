"""The command line: one file per verb, registered in ``app.py``. Importing it loads neither torch nor Ray."""

from heliostat_jobs.cli.app import app, main

__all__ = ["app", "main"]
