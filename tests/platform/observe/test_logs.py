import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from heliostat.observe.logs import configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.getLogger("heliostat").setLevel(logging.NOTSET)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail_with_secret() -> None:
    try:
        raise RuntimeError("denied for canary-4711 at http://user:canary@host/")
    except RuntimeError:
        deep = {"list": ["canary-4711"], "object": Exception("canary-4711")}
        structlog.stdlib.get_logger("heliostat.a").exception("failed", deep=deep)
        logging.getLogger("heliostat.b").exception("failed with %s", "canary-4711")
        logging.getLogger("library").error("canary-4711", exc_info=True, stack_info=True)


@pytest.mark.parametrize("as_json", [True, False])
def test_configure_logging__no_secret_passes(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_KEY", "canary-4711")
    stream = io.StringIO()
    configure_logging(as_json=as_json, stream=stream)
    fail_with_secret()
    assert "canary" not in stream.getvalue()
    assert stream.getvalue().count("RuntimeError: denied for ***") == 3


def test_configure_logging__elsewhere_than_on_a_terminal_lines_are_json() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    structlog.stdlib.get_logger("heliostat.a").info("ingested", images=5000)
    logging.getLogger("heliostat.b").warning("%d left", 3)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time_utc").endswith("Z")
    assert first == {"event": "ingested", "images": 5000, "level": "info", "logger": "heliostat.a"}
    assert (second["event"], second["level"]) == ("3 left", "warning")


def test_configure_logging__on_a_terminal_lines_are_for_people() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    structlog.stdlib.get_logger("heliostat.a").info("ingested", images=5000)
    assert "ingested" in stream.getvalue() and "5000" in stream.getvalue() and "{" not in stream.getvalue()


def test_configure_logging__levels_and_libraries() -> None:
    stream = io.StringIO()
    configure_logging("warning", stream=stream)
    structlog.stdlib.get_logger("heliostat.a").info("too quiet")
    logging.getLogger("library").info("too quiet")
    logging.getLogger("library").warning("loud enough")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud enough"]


def test_configure_logging__a_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first)
    configure_logging(stream=second)
    structlog.stdlib.get_logger("heliostat.a").info("once")
    assert first.getvalue() == "" and second.getvalue().count("once") == 1


def test_configure_logging__goes_to_standard_error_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    structlog.stdlib.get_logger("heliostat.a").info("here")
    captured = capsys.readouterr()
    assert captured.out == "" and "here" in captured.err
