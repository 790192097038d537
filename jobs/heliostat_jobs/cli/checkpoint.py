"""``heliostat checkpoint export``: trained backbones for other programs; other verbs are in ``checkpoint_views.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra

if TYPE_CHECKING:
    from heliostat_jobs.export import ExportResult

app = typer.Typer(help="Checkpoints: what a run has learnt.")


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run's name under ROOT, a file or folder of weights, or a released model such as dinov2_vits14.",
            show_default=False,
        ),
    ],
    format_: Annotated[
        Literal["safetensors", "huggingface", "timm", "onnx", "torch-export"],
        typer.Option("--format", help="What is written.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="A local folder for the files.", show_default=False)
    ],
    px: Annotated[
        int | None, typer.Option("--px", help="Side of the images; without it, that of the training.", min=1)
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Graphs take any number of images.", show_default=False)
    ] = False,
    step: Annotated[
        int | None, typer.Option("--step", help="Of a run's checkpoint; without it, the newest.", min=0)
    ] = None,
    student: Annotated[
        str | None, typer.Option("--student", help="Of a distillation; without it, its only one.", show_default=False)
    ] = None,
    root: Annotated[str, typer.Option("--root", help="Folder or s3://bucket/prefix of the runs.")] = "heliostat-root",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier export.", show_default=False)] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the backbone of a run (its teacher) or of a file for another program, and check it against ours."""
    require_extra("train,cpu", "torch", "safetensors")
    from heliostat_jobs.export import ExportRequest
    from heliostat_jobs.export import export as run_export

    result = run_export(ExportRequest(source, format_, output, root, step, px, dynamic_batch, force, student))
    if json:
        print_json(result.to_json())
    else:
        typer.echo("\n".join(lines(result)))


def lines(result: "ExportResult") -> list[str]:
    """One line per file, and what was checked."""
    files = [
        f"{result.output / file.name}  {file.size_bytes:,} bytes  sha256 {file.sha256}" for file in result.export.files
    ]
    checked = f"checked at {result.export.px} px: outputs differ by at most {result.export.max_difference:.1e}"
    return [*files, checked]
