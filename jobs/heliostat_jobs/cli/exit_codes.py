"""What the exit status of a command says."""

from enum import IntEnum

from heliostat.errors import (
    ClusterUnreachableError,
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


_UNREACHABLE = (StoreUnreachableError, StoreDeniedError, ClusterUnreachableError)
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
