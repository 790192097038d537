"""Which clusters may be talked to, and with which token."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import InsecureClusterError, InvalidValueError
from heliostat_jobs.submission.access import check_access, cluster_url, is_loopback, token_file


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("head", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("http://10.0.0.7:9000/", "http://10.0.0.7:9000"),
        ("https://ray.example.org", "https://ray.example.org:443"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_cluster_url__fills_in_what_is_left_out(text: str, url: str) -> None:
    assert cluster_url(text) == url


@pytest.mark.parametrize("text", ["", "ray://head:10001", "http://head:port", "http://head/path", "head:8265?x=1"])
def test_cluster_url__refuses_what_is_no_dashboard(text: str) -> None:
    with pytest.raises(InvalidValueError, match="no address"):
        cluster_url(text)


def test_cluster_url__does_not_repeat_a_password() -> None:
    with pytest.raises(InvalidValueError) as caught:
        cluster_url("https://someone:hunter22@head")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://127.8.9.1:8265", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://127.0.0.1.example.org:8265", False),
        ("http://localhost.example.org:8265", False),
        ("http://10.0.0.1:8265", False),
        ("http://0.0.0.0:8265", False),
    ],
)
def test_is_loopback__is_not_fooled_by_names(url: str, is_own: bool) -> None:
    assert is_loopback(url) is is_own


@pytest.mark.parametrize(
    ("url", "has_token", "missing"),
    [
        ("http://127.0.0.1:8265", False, None),
        ("https://head:443", True, None),
        ("http://head:8265", True, "no TLS"),
        ("https://head:443", False, "no token"),
        ("http://head:8265", False, "no token and no TLS"),
    ],
)
def test_check_access__beyond_this_machine_wants_token_and_tls(url: str, has_token: bool, missing: str | None) -> None:
    token = Path("token") if has_token else None
    if missing is None:
        check_access(url, token)
        return
    with pytest.raises(InsecureClusterError, match=missing):
        check_access(url, token)
    check_access(url, token, is_insecure_wanted=True)


def test_token_file__is_the_named_one_or_that_of_ray_or_none(tmp_path: Path) -> None:
    assert token_file({}, tmp_path) is None
    own = tmp_path / ".ray" / "auth_token"
    own.parent.mkdir()
    own.touch(0o600)
    assert token_file({}, tmp_path) == own
    named = tmp_path / "named"
    named.touch(0o600)
    assert token_file({"RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path) == named


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_token_file__that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    named = tmp_path / "named"
    named.touch()
    named.chmod(mode)
    with pytest.raises(InsecureClusterError, match="chmod 600"):
        token_file({"RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path)


def test_token_file__that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InsecureClusterError, match="cannot be read"):
        token_file({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}, tmp_path)


@given(token=st.text("0123456789abcdef", min_size=8))
def test_token_file__a_token_by_value_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(InsecureClusterError) as caught:
        token_file({"RAY_AUTH_TOKEN": token}, Path("/nowhere"))
    assert token not in str(caught.value)
