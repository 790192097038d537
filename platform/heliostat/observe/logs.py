"""How the process logs: structlog over the standard library, so that libraries' records take the same way out.

Lines for people on a terminal, one JSON object per line elsewhere (the cluster, a file), always on standard error:
standard output belongs to results. No secret passes (see ``redaction.py``), not in tracebacks either.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import TextIO

import structlog

from heliostat.observe.redaction import redact_value

_LIBRARY_LEVEL = logging.WARNING
"""Other people's libraries speak when something is wrong."""


def redact_secrets(logger: object, method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """A structlog processor: no value of the event, however deep, holds a secret."""
    return {
        name: value if name in {"_record", "_from_structlog"} else redact_value(value) for name, value in event.items()
    }


def configure_logging(level: str = "info", *, as_json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up logging of the whole process; a later call replaces an earlier one.

    Args:
        level: Least severe level that Heliostat's own loggers show: debug, info, warning, error.
        as_json: One JSON object per line; if not said, where the stream is no terminal.
        stream: Where lines go; standard error if not said.
    """
    target = sys.stderr if stream is None else stream
    json_lines = not target.isatty() if as_json is None else as_json
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time_utc"),
        structlog.processors.StackInfoRenderer(),
        # Tracebacks become text before the redaction, so that a secret in an exception's message is found there too.
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            redact_secrets,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _renderer(json_lines, colors=target.isatty()),
        ],
    )
    handler = _CurrentStderr() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LIBRARY_LEVEL)
    for package in ("heliostat", "heliostat_jobs", "heliostat_evaluation", "heliostat_cluster"):
        logging.getLogger(package).setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now: a live view stands in for it, so that lines appear above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error of this instant."""
        return sys.stderr


def _renderer(json_lines: bool, *, colors: bool) -> structlog.typing.Processor:
    if json_lines:
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    return structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time_utc", exception_formatter=structlog.dev.plain_traceback
    )
