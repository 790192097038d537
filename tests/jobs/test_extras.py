import pytest

from heliostat.errors import MissingExtraError
from heliostat_jobs.extras import require_extra


def test_require_extra__names_what_is_missing_and_the_pip_command() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require_extra("train", "json", "no_such_ray", "no_such_torch")
    assert str(caught.value) == (
        "HS-CONF-009: this command needs no_such_ray and no_such_torch, which are not installed. "
        'Run: pip install "heliostat[train]".'
    )


def test_require_extra__accepts_what_is_there() -> None:
    require_extra("train", "json", "math")
