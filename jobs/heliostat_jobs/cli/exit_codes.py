"""What the exit status of a command says."""

from enum import IntEnum

import typer

from heliostat.errors import (
    ClusterDeniedError,
    ClusterUnreachableError,
    CommandLineError,
    ConfigError,
    DatasetNotFoundError,
    ExportExistsError,
    HeliostatError,
    InvalidKeyError,
    InvalidUrlError,
    NoDataPoolError,
    NoImagesError,
    PreemptedError,
    RunNotFoundError,
    SelectionError,
    SourceNotFoundError,
    StoreDeniedError,
    StoreUnreachableError,
    UnknownImageError,
    UnlabelledDatasetError,
    UnsupportedExportError,
    WeightsNotFoundError,
)

_LONGEST_MESSAGE_CHARS = 300


class ExitCode(IntEnum):
    """Exit statuses; scripts depend on them."""

    OK = 0
    FAILED = 1
    """The job failed; or, of ``config diff``, the recipes differ."""
    USAGE = 2
    """What was asked for cannot be: a bad recipe, option or name. Nothing was started."""
    UNREACHABLE = 3
    """The object store or the cluster does not answer, or refuses the credentials."""
    PREEMPTED = 4
    """The job gave up after preemptions; it can be resumed."""
    INTERRUPTED = 130
    """Control-C, as shells count it: 128 + SIGINT."""
    BROKEN_PIPE = 141
    """Nobody reads the output any more: 128 + SIGPIPE."""


_UNREACHABLE = (StoreUnreachableError, StoreDeniedError, ClusterUnreachableError, ClusterDeniedError)
_USAGE = (
    ConfigError,
    SourceNotFoundError,
    NoImagesError,
    DatasetNotFoundError,
    UnlabelledDatasetError,
    SelectionError,
    NoDataPoolError,
    InvalidUrlError,
    InvalidKeyError,
    RunNotFoundError,
    WeightsNotFoundError,
    UnsupportedExportError,
    ExportExistsError,
    UnknownImageError,
)


def exit_code_of(error: HeliostatError) -> ExitCode:
    """The exit status for an error that ended a command."""
    if isinstance(error, _UNREACHABLE):
        return ExitCode.UNREACHABLE
    if isinstance(error, PreemptedError):
        return ExitCode.PREEMPTED
    return ExitCode.USAGE if isinstance(error, _USAGE) else ExitCode.FAILED


def explain(error: BaseException) -> tuple[HeliostatError, int]:
    """What a user is told of whatever ended a command or a job, and the exit status."""
    if isinstance(error, HeliostatError):
        return error, exit_code_of(error)
    if isinstance(error, typer.TyperException):
        return _usage_error(error), ExitCode.USAGE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return HeliostatError("interrupted", "The same command continues from what is committed"), ExitCode.INTERRUPTED
    message = f"unexpected {type(error).__name__}: {error}"[:_LONGEST_MESSAGE_CHARS].rstrip(". ")
    next_step = "This is a mistake in Heliostat; run the command again with --debug and report what it prints"
    return HeliostatError(message, next_step), ExitCode.FAILED


def _usage_error(error: typer.TyperException) -> CommandLineError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "heliostat"
    message = error.format_message().replace(". Did you mean ", "; the nearest is ").strip().rstrip(".?")
    return CommandLineError(message[:1].lower() + message[1:], f"See {command} --help")
