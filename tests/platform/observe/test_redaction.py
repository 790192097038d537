import pytest

from heliostat.observe.redaction import redact, redact_value

ENVIRON = {"AWS_SECRET_ACCESS_KEY": "canary/4711", "db_password": "swordfish", "USE_TOKEN": "true", "HOME": "/home/u"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key canary/4711, again canary/4711", "key ***, again ***"),
        ("swordfish", "***"),
        ("true is a switch, /home/u no secret", "true is a switch, /home/u no secret"),
        ("http://user:pass@host/path", "http://***@host/path"),
        ("http://user:p@ss@host:8333/a http://plain/x@y", "http://***@host:8333/a http://plain/x@y"),
        ("http://user:pa/ss@host/path", "http://***@host/path"),
        ("mail someone@example.org", "mail someone@example.org"),
    ],
)
def test_redact__table(text: str, expected: str) -> None:
    assert redact(text, ENVIRON) == expected


def test_redact__a_secret_inside_a_longer_one_leaves_no_rest() -> None:
    assert redact("abcdef-ghi", {"A_KEY": "abcdef", "B_KEY": "abcdef-ghi"}) == "***"


def test_redact_value__reaches_every_depth() -> None:
    value = {"swordfish": [("canary/4711", 1.5, None)], "error": RuntimeError("no swordfish")}
    assert redact_value(value, ENVIRON) == {"***": [["***", 1.5, None]], "error": "RuntimeError('no ***')"}


def test_redact__hides_what_references_fill_and_keys_line_by_line() -> None:
    environ = {
        "HELIOSTAT_SECRETS": '{"DATABASE_URL": "file:/run/db", "SENTRY_DSN": "env:NODE_DSN"}',
        "DATABASE_URL": "postgres-canary-1",
        "SENTRY_DSN": "dsn-canary-2",
        "NODE_DSN": "dsn-canary-3",
        "SIGNING_KEY": "first-line-4\nsecond-line-5",
    }
    for text in ("postgres-canary-1", "dsn-canary-2", "dsn-canary-3", "first-line-4", "second-line-5"):
        assert redact(f"it is {text}!", environ) == "it is ***!"
    assert redact("postgres", {"HELIOSTAT_SECRETS": "no json"}) == "postgres"
