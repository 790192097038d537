import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from heliostat import __version__
from heliostat.errors import (
    FencedError,
    HeliostatError,
    IndivisibleBatchError,
    NoImagesError,
    PreemptedError,
    StoreDeniedError,
    StoreUnreachableError,
    TrainingFailedError,
)
from heliostat_jobs.cli.app import CommandLine, app
from heliostat_jobs.cli.options import DebugOption, JsonOption

PROGRAM = [sys.executable, "-c", "from heliostat_jobs.cli import main; main()"]


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str


def ending_with(error: BaseException, *arguments: str) -> Outcome:
    """How a command ends whose work raises this."""
    failing = typer.Typer(cls=CommandLine, pretty_exceptions_enable=False)

    @failing.callback()
    def root() -> None: ...

    @failing.command()
    def work(json: JsonOption = False, debug: DebugOption = False) -> None:
        raise error

    result = CliRunner().invoke(failing, ["work", *arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (TrainingFailedError, 1),
        (FencedError, 1),
        (IndivisibleBatchError, 2),
        (NoImagesError, 2),
        (StoreUnreachableError, 3),
        (StoreDeniedError, 3),
        (PreemptedError, 4),
    ],
)
def test_command_line__an_error_is_one_line_and_an_exit_code(error: type[HeliostatError], exit_code: int) -> None:
    expected = Outcome(exit_code, "", f"error: {error.code}: it broke. Mend it.\n")
    assert ending_with(error("it broke", "Mend it")) == expected


def test_command_line__json_makes_the_error_one_object_on_standard_output() -> None:
    outcome = ending_with(StoreUnreachableError("it broke", "Mend it"), "--json")
    assert (outcome.exit_code, outcome.stderr) == (3, "")
    assert json.loads(outcome.stdout) == {
        "error": {"code": "HS-STOR-004", "message": "it broke", "next_step": "Mend it"}
    }


def test_command_line__debug_adds_the_traceback() -> None:
    outcome = ending_with(TrainingFailedError("it broke", "Mend it"), "--debug")
    assert outcome.stderr.startswith("Traceback (most recent call last)")
    assert outcome.stderr.endswith("\nerror: HS-RUN-003: it broke. Mend it.\n")


def test_command_line__an_unexpected_error_is_one_line_that_asks_for_debug() -> None:
    outcome = ending_with(KeyError("a\nb" * 1000))
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("error: HS-000: unexpected KeyError: ")
    assert "--debug" in outcome.stderr


def test_command_line__an_interrupt_is_one_line() -> None:
    outcome = ending_with(KeyboardInterrupt())
    assert outcome.exit_code == 130
    assert outcome.stderr.startswith("error: HS-000: interrupted. ")
    assert outcome.stderr.count("\n") == 1


def test_command_line__secrets_do_not_reach_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-words")
    outcome = ending_with(RuntimeError("refused very-secret-words"), "--debug")
    assert "refused ***" in outcome.stderr
    assert "very-secret-words" not in outcome.stderr


def run(*arguments: str) -> Outcome:
    result = CliRunner().invoke(app, arguments)
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["confg"], "no such command 'confg'; the nearest is 'config'. See heliostat --help."),
        (["config"], "missing command. See heliostat config --help."),
        (["config", "show"], "missing argument 'recipe'. See heliostat config show --help."),
    ],
)
def test_app__usage_errors_are_one_line_too(arguments: list[str], line: str) -> None:
    assert run(*arguments) == Outcome(2, "", f"error: HS-CONF-011: {line}\n")


def test_app__options_before_the_command_are_refused_rather_than_ignored() -> None:
    assert run("--debug", "config", "schema").stderr.endswith(
        "error: HS-CONF-011: --debug stands before the command. Put --debug at the end of the line.\n"
    )
    error = json.loads(run("--json", "config", "schema").stdout)["error"]
    assert error["message"] == "--json stands before the command"


def test_app__an_unknown_option_fails_as_json_where_json_is_asked_for() -> None:
    outcome = run("config", "show", "r.yaml", "--jason", "--json")
    assert outcome.exit_code == 2
    assert json.loads(outcome.stdout)["error"]["code"] == "HS-CONF-011"


def test_app__version_and_help() -> None:
    assert run("--version") == Outcome(0, f"heliostat {__version__}\n", "")
    assert json.loads(run("--version", "--json").stdout) == {"version": __version__}
    assert run().stdout == run("--help").stdout
    assert "config" in run().stdout
    assert run("config", "--help").exit_code == 0


def commands(group: TyperGroup, path: str = "heliostat") -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", {option for parameter in command.params for option in parameter.opts}


def test_app__every_command_takes_json_and_debug() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    found = dict(commands(group))
    assert "heliostat config show" in found
    assert [path for path, options in found.items() if not {"--json", "--debug"} <= options] == []


def test_main__loads_no_engine() -> None:
    code = (
        "import sys, heliostat_jobs.cli; "
        "print([name for name in ('torch', 'ray', 'deepspeed', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_main__exits_with_the_status_of_the_command() -> None:
    done = subprocess.run([*PROGRAM, "config", "show", "missing.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (
        "",
        "error: HS-CONF-001: recipe missing.yaml does not exist. Check its path.\n",
    )


@pytest.mark.parametrize("arguments", [["config", "schema"], ["config", "schema", "--json"], ["--help"]])
def test_main__a_closed_pipe_ends_it_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_main__a_broken_pipe_inside_a_job_is_told() -> None:
    code = (
        "import os, typer\n"
        "from heliostat_jobs.cli.app import CommandLine\n"
        "app = typer.Typer(cls=CommandLine, pretty_exceptions_enable=False)\n"
        "@app.callback()\n"
        "def root(): pass\n"
        "@app.command()\n"
        "def work():\n"
        "    raise BrokenPipeError(32, 'a worker went away')\n"
        "app()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "work"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a worker went away" in done.stderr
