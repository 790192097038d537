"""``heliostat dataset show | verify | sample | materialize``: looking at datasets, and writing selections out."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.markup import escape
from rich.table import Table

from heliostat.observe.progress import watch_items
from heliostat.storage import open_store
from heliostat_jobs.cli.dataset import split_destination
from heliostat_jobs.cli.exit_codes import ExitCode
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import plain, print_json, print_table
from heliostat_jobs.extras import require_extra

if TYPE_CHECKING:
    from heliostat.data.describe import DatasetSummary
    from heliostat.data.manifest import DatasetManifest
    from heliostat.data.verify import VerifyResult
    from heliostat.storage import Store

_MOST_LABELS = 40
_MOST_MANIFESTS = 10
_BAR_CHARS = 30

DatasetArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="ROOT/NAME", help="The dataset NAME below a folder or s3://bucket/prefix.", show_default=False
    ),
]


def show(dataset: DatasetArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Print what a dataset holds and where it came from. Reads its indexes, no image."""
    root, manifest = _open(dataset)
    from heliostat.data.describe import describe_dataset

    summary = describe_dataset(root, manifest)
    if json:
        print_json(_to_json(summary))
        return
    for table in summary_tables(summary):
        print_table(table)
        typer.echo()
    if summary.advice:
        typer.echo(f"advice: {summary.advice}")


def verify(dataset: DatasetArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Read every byte of a dataset and compare it with its hash, and every image with its id. Exit status 1 if not."""
    root, manifest = _open(dataset)
    from heliostat.data.verify import verify_dataset

    with watch_items("verifying", None) as progress:
        result = verify_dataset(root, manifest, lambda done, total: progress.update(done, total=total))
    if json:
        print_json({"dataset": manifest.name, "manifest_sha256": manifest.sha256, **asdict(result)})
    else:
        typer.echo("\n".join(verify_lines(manifest.name, result)))
    if result.broken:
        raise typer.Exit(ExitCode.FAILED)


def sample(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option(metavar="HTML", help="Where to write the page.")] = Path("contact-sheet.html"),
    count: Annotated[int, typer.Option(min=1, max=2000, help="Images.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Another seed shows other images.")] = 0,
    label: Annotated[str | None, typer.Option(help="Only images with this label.", show_default=False)] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a contact sheet: some images of a dataset at random, with label, size, id and source, as one HTML page."""
    root, manifest = _open(dataset)
    require_extra("train", "cv2", "jinja2", "simplejpeg")
    from heliostat_jobs.contact_sheet import contact_sheet, make_tiles, pick_rows, write_page

    rows = pick_rows(root, manifest, count, seed, label)
    tiles = make_tiles(root, manifest, rows)
    chosen = "" if label is None else f" with the label {label!r}"
    subtitle = f"{len(tiles):,} of {manifest.rows:,} images{chosen}, seed {seed} · manifest {manifest.sha256[:16]}"
    write_page(output, contact_sheet(manifest, tiles, subtitle))
    if json:
        print_json({"dataset": manifest.name, "output": str(output), "rows": rows, "ids": [tile.id for tile in tiles]})
    else:
        typer.echo(f"{output}: {len(tiles):,} images")


def materialize(
    source: Annotated[
        str, typer.Argument(metavar="ROOT/SRC", help="A curated selection below a root.", show_default=False)
    ],
    name: Annotated[
        str, typer.Argument(metavar="DST-NAME", help="The new dataset, in the same root.", show_default=False)
    ],
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the images of a curated selection as shards of their own, so that training reads only what it uses."""
    root, manifest = _open(source)
    from heliostat.data.materialize import materialize as run_materialize

    with watch_items("writing", manifest.rows) as progress:
        result = run_materialize(root, manifest, name, lambda done, total: progress.update(done, total=total))
    if json:
        print_json({"dataset": name, **asdict(result)})
        return
    typer.echo(
        f"{name}: {result.images:,} images in {result.size_bytes / 2**20:,.1f} MiB, read from "
        f"{result.bytes_read / 2**20:,.1f} MiB in {result.duration_s:.1f} s, {result.duplicates:,} duplicates left out"
    )
    typer.echo(f"manifest: {result.manifest_sha256}")


def summary_tables(summary: "DatasetSummary") -> list[Table]:
    """What a dataset holds, as tables."""
    facts = Table("dataset", escape(summary.name), box=None, pad_edge=False)
    facts.add_row("images", f"{summary.images:,}")
    facts.add_row("encoded images", f"{summary.image_bytes / 2**20:,.1f} MiB")
    if summary.parts:
        facts.add_row("selected from", plain(", ".join(f"{name} @ {sha256[:16]}" for name, sha256 in summary.parts)))
        facts.add_row("bytes read / used", f"{summary.read_amplification:.1f} (estimated)")
    else:
        facts.add_row("on disk", f"{summary.size_bytes / 2**20:,.1f} MiB in {summary.shards:,} shards")
    facts.add_row("row groups", f"{summary.row_groups:,}")
    facts.add_row("shorter side", f"{summary.median_short_side_px:,} px (median)")
    facts.add_row("quarantined", f"{sum(summary.quarantine.values()):,}")
    facts.add_row("manifest", summary.manifest_sha256)
    tables = [facts]
    if summary.labels:
        ordered = sorted(summary.labels.items(), key=lambda pair: (-pair[1], pair[0]))
        more = [(f"… and {len(ordered) - _MOST_LABELS:,} more", sum(count for _, count in ordered[_MOST_LABELS:]))]
        none = [("(no label)", summary.unlabelled)] if summary.unlabelled else []
        rows = ordered[:_MOST_LABELS] + (more if len(ordered) > _MOST_LABELS else []) + none
        tables.append(_histogram("label", rows))
    sides = [(_span(one.from_px, one.below_px), one.images) for one in summary.short_sides]
    tables.append(_histogram("shorter side, px", sides))
    if summary.reasons:
        tables.append(_histogram("selected for", list(summary.reasons.items())[:_MOST_LABELS]))
    if summary.quarantine:
        tables.append(_histogram("quarantined for", list(summary.quarantine.items())))
    tables.append(_history_table(summary))
    return tables


def verify_lines(name: str, result: "VerifyResult") -> list[str]:
    """What was verified, and each broken part."""
    speed = result.size_bytes / 2**20 / max(result.duration_s, 1e-9)
    again = f", {result.repeated_reads:,} reads repeated" if result.repeated_reads else ""
    amount = f"{result.size_bytes / 2**20:,.1f} MiB in {result.duration_s:.1f} s ({speed:,.0f} MiB/s)"
    checked = f"{result.images:,} images, {amount}{again}"
    if not result.broken:
        return [f"{name}: {checked}: every byte is as it was ingested"]
    broken = [f"broken: {plain(fact)}" for fact in result.broken]
    return [*broken, f"{name}: {checked}: {len(broken):,} broken parts; restore them from a backup or ingest again"]


def _history_table(summary: "DatasetSummary") -> Table:
    table = Table(
        "manifest", "created (UTC)", "images added", "duplicates", "heliostat", "source", box=None, pad_edge=False
    )
    for sha256, one in summary.history[:_MOST_MANIFESTS]:
        created = one.created_utc.replace("T", " ").removesuffix("+00:00")
        table.add_row(
            sha256[:16],
            plain(created),
            f"{one.images_added:,}",
            f"{one.duplicates:,}",
            plain(one.heliostat_version),
            plain(one.source),
        )
    if len(summary.history) > _MOST_MANIFESTS:
        table.add_row(f"… {len(summary.history) - _MOST_MANIFESTS:,} before")
    return table


def _histogram(title: str, rows: Iterable[tuple[str, int]]) -> Table:
    table = Table(title, "images", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    listed = list(rows)
    most = max(count for _, count in listed)
    for name, count in listed:
        table.add_row(plain(name), f"{count:,}", "█" * round(_BAR_CHARS * count / max(most, 1)))
    return table


def _span(from_px: int, below_px: int | None) -> str:
    return f"{from_px:,} and more" if below_px is None else f"{from_px:,} to {below_px - 1:,}"


def _to_json(summary: "DatasetSummary") -> dict[str, object]:
    history = [{"manifest_sha256": sha256, **one.model_dump(mode="json")} for sha256, one in summary.history]
    parts = [{"name": name, "manifest_sha256": sha256} for name, sha256 in summary.parts]
    fields = {name: getattr(summary, name) for name in summary.__slots__}
    sides = [asdict(one) for one in summary.short_sides]
    return {**fields, "short_sides": sides, "history": history, "parts": parts}


def _open(dataset: str) -> "tuple[Store, DatasetManifest]":
    require_extra("train", "pyarrow")
    from heliostat.data.manifest import load_manifest

    root_url, name = split_destination(dataset)
    root = open_store(root_url)
    return root, load_manifest(root, name)
