"""``heliostat submit|status|logs|cancel|resume``: jobs on a cluster, by their names."""

import os
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from heliostat.config import load_recipe
from heliostat_jobs.cli.exit_codes import ExitCode
from heliostat_jobs.cli.options import (
    AddressOption,
    DebugOption,
    InsecureOption,
    JsonOption,
    RecipeArgument,
    SecretOption,
    SetOption,
)
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.kinds import JOB_KINDS
from heliostat_jobs.pipelines.view import StageView
from heliostat_jobs.submission.access import is_loopback
from heliostat_jobs.submission.client import Client, JobHandle, JobState, JobStatus, find

NameArgument: TypeAlias = Annotated[str, typer.Argument(help="Name of the job: of its recipe.", show_default=False)]
RootOption: TypeAlias = Annotated[
    str, typer.Option("--root", help="Folder or s3://bucket/prefix that holds datasets and runs.")
]
KindOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--kind", help=f"Where jobs of several kinds have one name: {', '.join(JOB_KINDS)}.", show_default=False
    ),
]
FollowOption: TypeAlias = Annotated[
    bool, typer.Option("--follow", "-f", help="Print what comes, until the job ends.", show_default=False)
]
_DEFAULT_ROOT = "heliostat-root"


def submit(
    recipe: RecipeArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    secret: SecretOption = None,
    fork: Annotated[
        bool,
        typer.Option("--fork", help="If the name has another configuration, take a new name.", show_default=False),
    ] = False,
    follow: FollowOption = False,
    insecure: InsecureOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe on a cluster, or attach to the job of its name; the job goes on without this machine."""
    resolved = load_recipe(recipe, set_ or [], os.environ)
    handle = Client(address, insecure=insecure).submit(resolved, secrets=secret or (), fork=fork)
    _tell(handle, follow, json)


def status(
    name: NameArgument,
    root: RootOption = _DEFAULT_ROOT,
    kind: KindOption = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say how a job is, in one line; of a pipeline, its stages and how they follow one another."""
    handle = find(root, name, kind, address=address, insecure=insecure)
    _print(handle.status(), json, handle.stages())


def logs(
    name: NameArgument,
    root: RootOption = _DEFAULT_ROOT,
    kind: KindOption = None,
    follow: FollowOption = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print what a job's driver has printed; from the store, so that it outlives the cluster."""
    lines = find(root, name, kind, address=address, insecure=insecure).logs(follow=follow)
    if json:
        print_json({"lines": list(lines)})
        return
    for line in lines:
        typer.echo(line)


def cancel(
    name: NameArgument,
    root: RootOption = _DEFAULT_ROOT,
    kind: KindOption = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask a job to save what it has done and to end; heliostat resume goes on from there."""
    _print(find(root, name, kind, address=address, insecure=insecure).cancel(), json)


def resume(
    name: NameArgument,
    root: RootOption = _DEFAULT_ROOT,
    kind: KindOption = None,
    address: AddressOption = None,
    follow: FollowOption = False,
    insecure: InsecureOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Have a job go on that was cancelled or lost, on its cluster or on another one; attach to it if it runs."""
    found = find(root, name, kind, address=address, insecure=insecure)
    known = found.status().address
    wanted = address or (known if known is not None and is_loopback(known) else None)
    _tell(Client(wanted, insecure=insecure).resume(found), follow, json)


def _tell(handle: JobHandle, follow: bool, json: bool) -> None:
    if follow:
        for line in handle.logs(follow=True):
            typer.echo(line, err=json)
    _print(handle.status(), json)
    if not follow and not json:
        job = handle.job
        options = f"{job.name} --root {job.root.url}"
        typer.echo(f"next: heliostat logs -f {options}\n      heliostat status {options}")


def _print(status: JobStatus, json: bool, stages: Sequence[StageView] = ()) -> None:
    if json:
        told = {"stages": [stage.to_json() for stage in stages]} if stages else {}
        print_json({**status.to_json(), **told})
    else:
        typer.echo(status.line)
        for stage in stages:
            typer.echo(f"  {stage.line}")
        if status.next_step:
            typer.echo(f"next: {status.next_step}")
    if status.state in (JobState.FAILED, JobState.LOST):
        raise typer.Exit(ExitCode.FAILED)
