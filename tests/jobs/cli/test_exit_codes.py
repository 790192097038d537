import pytest

from heliostat import errors
from heliostat.errors import HeliostatError
from heliostat_jobs.cli.exit_codes import ExitCode, exit_code_of

EXPECTED = {
    errors.MissingExtraError: ExitCode.USAGE,
    errors.ChangedConfigError: ExitCode.USAGE,
    errors.SourceNotFoundError: ExitCode.USAGE,
    errors.DatasetNotFoundError: ExitCode.USAGE,
    errors.RunNotFoundError: ExitCode.USAGE,
    errors.InvalidUrlError: ExitCode.USAGE,
    errors.CorruptShardError: ExitCode.FAILED,
    errors.NonFiniteLossError: ExitCode.FAILED,
    errors.CheckpointError: ExitCode.FAILED,
    errors.StoreFailedError: ExitCode.FAILED,
    errors.StoreUnreachableError: ExitCode.UNREACHABLE,
    errors.StoreDeniedError: ExitCode.UNREACHABLE,
    errors.PreemptedError: ExitCode.PREEMPTED,
}


@pytest.mark.parametrize("error", EXPECTED)
def test_exit_code_of__table(error: type[HeliostatError]) -> None:
    assert exit_code_of(error("a", "b")) == EXPECTED[error]
