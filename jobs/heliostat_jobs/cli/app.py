"""The ``heliostat`` command: what verbs there are, and how a command ends.

A verb is a function in a file of its own; here it only gets its name. Whatever it raises becomes one line on standard
error (with ``--json`` one JSON object on standard output) and an exit status; ``--debug`` adds the traceback.
"""

import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from heliostat import __version__
from heliostat.errors import CommandLineError
from heliostat.observe.logs import configure_logging
from heliostat.observe.redaction import redact
from heliostat_jobs.cli import (
    board,
    checkpoint,
    checkpoint_views,
    config_commands,
    curation,
    dataset,
    dataset_views,
    demo,
    plan,
    run,
    submitted,
)
from heliostat_jobs.cli.exit_codes import ExitCode, explain
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import print_json


class CommandLine(TyperGroup):
    """The group of all commands; ends the process as ``ExitCode`` says, whatever happens in a command."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command and exit with its status; the parameters are those of the framework."""
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(self._run(arguments))

    def _run(self, arguments: list[str]) -> int:
        try:
            with self.make_context("heliostat", arguments.copy()) as context:
                self.invoke(context)
                # Here and not at interpreter exit, where a closed pipe or a full disk would print a traceback.
                sys.stdout.flush()
        except typer.Exit as end:
            return end.exit_code
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return ExitCode.BROKEN_PIPE
            return _report(error, arguments)
        return ExitCode.OK


def _nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; if so, what is still buffered is dropped.

    A broken pipe can also be one inside a job, which must not end quietly.
    """
    poller = select.poll()
    poller.register(sys.stdout, 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    if closed:
        # Otherwise the interpreter would try to write the rest at exit, and complain.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return closed


def _report(error: BaseException, arguments: list[str]) -> int:
    """Tell the user what ended the command; returns the exit status."""
    known, status = explain(error)
    fact, next_step = redact(known.fact), redact(known.next_step)
    # The arguments themselves are looked at, since they may be what could not be understood.
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--debug" in flags:
        typer.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)
    if "--json" in flags:
        with suppress(OSError):  # standard output is closed or full: the line below is what is left
            print_json({"error": {"code": known.code, "message": fact, "next_step": next_step}})
            return status
    # Not str(): an error that comes out of a Ray task answers that with the task's whole traceback.
    typer.echo(f"error: {known.code}: {fact}. {next_step}.", err=True)
    return status


app = typer.Typer(
    cls=CommandLine,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def heliostat(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", show_default=False)] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Pre-train, evaluate and distil vision models, exactly and elastically.

    Exit status: 0 ok, 1 the job failed, 2 usage, 3 a store or cluster cannot be reached, 4 gave up after preemptions.
    """
    configure_logging("warning")  # what a command has to say it prints; workers log the rest
    if version:
        print_json({"version": __version__}) if json else typer.echo(f"heliostat {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    elif json or debug:
        option = "--json" if json else "--debug"
        raise CommandLineError(f"{option} stands before the command", f"Put {option} at the end of the line")


app.command()(run.run)
app.command()(plan.plan)
for job_verb in (submitted.submit, submitted.status, submitted.logs, submitted.cancel, submitted.resume):
    app.command()(job_verb)
app.command()(demo.demo)
app.command()(board.board)
app.add_typer(config_commands.app, name="config")
app.add_typer(dataset.app, name="dataset")
app.add_typer(curation.app, name="curation")
for view in (dataset_views.show, dataset_views.verify, dataset_views.sample, dataset_views.materialize):
    dataset.app.command()(view)
app.add_typer(checkpoint.app, name="checkpoint")
checkpoint.app.command("list")(checkpoint_views.list_)
for verb in (checkpoint_views.show, checkpoint_views.verify, checkpoint_views.save):
    checkpoint.app.command()(verb)


def main() -> None:
    """The console entry point; does not return."""
    app()
