import pytest
from botocore.exceptions import ConnectionClosedError, ParamValidationError

from heliostat.storage.s3_backoff import FIRST_WAIT_S, MAX_WAIT_S, Backoff

TRANSIENT = ConnectionClosedError(endpoint_url="http://host")


def _backoff(budget_s: float = 1e9) -> Backoff:
    return Backoff(budget_s, "s3://bucket", "s3://bucket/key")


def test_backoff__doubles_up_to_a_limit() -> None:
    backoff = _backoff()
    for failures in range(2000):  # an outage of more than an hour
        longest = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 20))
        assert longest / 2 <= backoff(TRANSIENT) <= longest


def test_backoff__differs_between_clients_at_the_limit_too() -> None:
    clients = [_backoff() for _ in range(20)]
    waits = [[client(TRANSIENT) for client in clients] for _ in range(12)]
    assert all(len(set(at_once)) == len(clients) for at_once in waits)


def test_backoff__lets_errors_through_that_waiting_does_not_cure() -> None:
    assert _backoff()(ParamValidationError(report="")) is False


@pytest.mark.parametrize("budget_s", [0.0, 0.3, 3.0])
def test_backoff__never_waits_beyond_its_budget(budget_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for _ in range(50):
        now = 100.0
        backoff = _backoff(budget_s)
        while wait_s := backoff(TRANSIENT):
            now += wait_s
            assert now <= 100.0 + budget_s
