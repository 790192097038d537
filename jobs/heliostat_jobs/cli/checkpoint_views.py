"""``heliostat checkpoint list | show | verify | save``: looking at the checkpoints of a run, and asking for one."""

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from heliostat.errors import CommandLineError
from heliostat_jobs.cli.exit_codes import ExitCode
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import plain, print_json, print_table

if TYPE_CHECKING:
    from heliostat_jobs.checkpoints import Described, Listed, Verified

RunArgument: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="A run's name.", show_default=False)]
RootOption: TypeAlias = Annotated[str, typer.Option("--root", help="Folder or s3://bucket/prefix of the runs.")]
StepOption: TypeAlias = Annotated[
    int | None, typer.Option("--step", help="Of the checkpoint; without it, the newest.", min=0)
]


def list_(
    run: RunArgument, root: RootOption = "heliostat-root", json: JsonOption = False, debug: DebugOption = False
) -> None:
    """List the checkpoints that a run can go on from, oldest first."""
    from heliostat.storage import open_store
    from heliostat_jobs.checkpoints import list_checkpoints
    from heliostat_jobs.runs import existing_run

    listed = list_checkpoints(existing_run(open_store(root), run))
    if json:
        print_json({"run": run, "checkpoints": [asdict(each) for each in listed]})
    elif listed:
        print_table(list_table(listed))
    else:
        typer.echo(f"{run} has no checkpoint yet")


def show(
    run: RunArgument,
    step: StepOption = None,
    root: RootOption = "heliostat-root",
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print what is in a checkpoint. Reads its manifest, no tensor."""
    from heliostat.storage import open_store
    from heliostat_jobs.checkpoints import chosen, describe
    from heliostat_jobs.runs import existing_run

    store = existing_run(open_store(root), run)
    described = describe(store, chosen(store, step))
    if json:
        print_json({"run": run, **asdict(described)})
        return
    for table in described_tables(run, described):
        print_table(table)
        typer.echo()


def verify(
    run: RunArgument,
    step: StepOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All checkpoints of the run.", show_default=False)] = False,
    root: RootOption = "heliostat-root",
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Read every byte of a checkpoint and compare it with its hash. Exit status 1 if one differs."""
    from heliostat.checkpoint.log import CommitLog, live_checkpoints
    from heliostat.storage import open_store
    from heliostat_jobs.checkpoints import chosen
    from heliostat_jobs.checkpoints import verify as run_verify
    from heliostat_jobs.runs import existing_run

    if all_ and step is not None:
        raise CommandLineError("--all and --step exclude each other", "Give one of them")
    store = existing_run(open_store(root), run)
    newest = chosen(store, step)
    entries = live_checkpoints(CommitLog(store).read()) if all_ else (newest,)
    bar = Progress(
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task, lock = bar.add_task("verifying", total=None), threading.Lock()

        def hashed(size_bytes: int) -> None:
            with lock:
                bar.advance(task, size_bytes)

        verified = run_verify(store, entries, hashed)
    ok = all(each.fault is None for each in verified)
    if json:
        print_json({"run": run, "ok": ok, "checkpoints": [asdict(each) for each in verified]})
    else:
        for line in verify_lines(verified):
            typer.echo(line)
    if not ok:
        raise typer.Exit(ExitCode.FAILED)


def save(
    run: RunArgument,
    root: RootOption = "heliostat-root",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is committed.", show_default=False)] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", help="Seconds to wait before the request is taken back.", min=0)
    ] = 600.0,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask a run that is training for a checkpoint at its next step."""
    from heliostat.checkpoint.requests import ask
    from heliostat.storage import open_store
    from heliostat_jobs.checkpoints import wait_for_answer
    from heliostat_jobs.runs import existing_run

    store = existing_run(open_store(root), run)
    key = ask(store)
    entry = wait_for_answer(store, key, timeout_s) if wait else None
    if json:
        print_json({"run": run, "request": key, "step": entry.step if entry else None})
    elif entry:
        typer.echo(f"{run}: the checkpoint of step {entry.step:,} is committed")
    else:
        typer.echo(f"{run}: asked; if it trains, it makes a checkpoint at its next step ({key})")


def list_table(listed: "list[Listed]") -> Table:
    """One row per checkpoint."""
    names = [name for name in ("loss",) if any(name in each.metrics for each in listed)]
    table = Table("step", "attempt", "committed (UTC)", "size", "workers", *names, box=None, pad_edge=False)
    for each in listed:
        table.add_row(
            f"{each.step:,}",
            str(each.attempt),
            plain(_moment(each.written_at)),
            "manifest is broken" if each.size_bytes is None else _mib(each.size_bytes),
            "" if each.workers is None else str(each.workers),
            *(f"{each.metrics[name]:.4f}" if name in each.metrics else "" for name in names),
        )
    return table


def described_tables(run: str, described: "Described") -> list[Table]:
    """What is in a checkpoint, as tables."""
    facts = Table("run", escape(run), box=None, pad_edge=False)
    facts.add_row("step", f"{described.step:,}")
    facts.add_row("attempt", str(described.attempt))
    facts.add_row("committed (UTC)", plain(_moment(described.written_at)))
    facts.add_row(
        "size", f"{_mib(described.size_bytes)} in {described.shards:,} shards of {described.workers:,} workers"
    )
    facts.add_row("folder", plain(described.folder))
    for name, value in described.counters.items():
        facts.add_row(plain(name.replace("_", " ")), plain(str(value)))
    facts.add_row("digest of ids", plain(described.digest_of_ids))
    facts.add_row("manifest", described.manifest_sha256)
    kinds = Table("kind", "tensors", "elements", "size", box=None, pad_edge=False)
    for each in described.kinds:
        kinds.add_row(plain(each.kind), f"{each.tensors:,}", f"{each.elements:,}", _mib(each.size_bytes))
    tables = [facts, kinds]
    if described.metrics:
        metrics = Table("metric", "of its last step", box=None, pad_edge=False)
        for name, value in sorted(described.metrics.items()):
            metrics.add_row(plain(name), f"{value:.6g}")
        tables.append(metrics)
    return tables


def verify_lines(verified: "list[Verified]") -> list[str]:
    """One line per checkpoint."""
    lines = []
    for each in verified:
        speed = each.size_bytes / 2**20 / max(each.duration_s, 1e-9)
        amount = f"{_mib(each.size_bytes)} in {each.duration_s:.1f} s ({speed:,.0f} MiB/s)"
        verdict = "every byte is as it was committed" if each.fault is None else f"broken: {plain(each.fault)}"
        lines.append(f"step {each.step:,}, attempt {each.attempt}: {amount}: {verdict}")
    return lines


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


def _moment(iso: str) -> str:
    return iso.replace("T", " ").partition(".")[0].removesuffix("+00:00")
