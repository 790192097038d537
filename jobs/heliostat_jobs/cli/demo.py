"""``heliostat demo``: see the whole platform work in minutes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from heliostat_jobs.cli.options import DebugOption, JsonOption, SetOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra


def demo(
    data: Annotated[
        Path | None, typer.Option(help="A folder of your own images, one sub-folder per class.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("heliostat-demo"),
    chaos: Annotated[
        bool,
        typer.Option(
            "--chaos",
            help="Train on two simulated spot nodes; a worker is killed and a node taken away meanwhile.",
            show_default=False,
        ),
    ] = False,
    set_: SetOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ingest real images, pre-train a small ViT on two workers, evaluate it and write a report; about five minutes."""
    require_extra("train,cpu", "torch", "ray", "deepspeed")
    from heliostat_jobs.demo import demo as run_demo
    from heliostat_jobs.demo_report import exactness

    result = run_demo(data, out, set_ or [], os.environ, chaos=chaos)
    if json:
        print_json(result.to_json())
        return
    typer.echo(
        "\n".join(
            [
                f"k-NN on held-out images: untrained {result.knn_untrained:.1%}, raw pixels {result.knn_pixels:.1%}, "
                f"trained {result.knn_trained:.1%}",
                f"throughput: {result.images_per_s:.0f} images/s",
                f"interruptions: {result.interruptions}, steps computed again: {result.steps_lost}",
                exactness(result.images_seen, result.is_exact).rstrip("."),
                f"report: {result.report}",
                "next: open the report in a browser, then",
                f"      heliostat config show {result.root}/runs/{result.run}/config.yaml",
                "      heliostat dataset ingest FOLDER heliostat-root/my-images",
                "      heliostat run RECIPE.yaml",
            ]
        )
    )
