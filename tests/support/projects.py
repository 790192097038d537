"""A small project on disk or in a bucket: images, a dataset, a recipe, and the command line to run it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from support.small_datasets import store_dataset
from support.worlds import encoded_images, tiny_recipe

from heliostat.storage import Store

CLASSES = 3


def write_images(folder: Path) -> Path:
    """The generated images as PNG files in one sub-folder per class."""
    for index, data in enumerate(encoded_images()):
        label = folder / f"class-{index % CLASSES}"
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{index:03d}.png").write_bytes(data)
    return folder


def store_images(root: Store, name: str = "tiny") -> None:
    """The generated images as a dataset, as an ingest of ``write_images`` would store them, but without one."""
    store_dataset(root, encoded_images(), name, labels=[f"class-{index}" for index in range(CLASSES)])


def write_recipe(path: Path, root: str, **training: Any) -> Path:
    """The recipe of ``tiny_recipe`` as YAML."""
    recipe = json.loads(tiny_recipe(**training).model_dump_json())
    recipe["root"] = root
    recipe["checkpoint"] = {"every_steps": 2, "keep_last": 3}
    recipe["observe"] = {"flush_interval_s": 0.2, "log_every_steps": 1}
    path.write_text(yaml.safe_dump(recipe))
    return path


def command(*arguments: str) -> list[str]:
    """The command line of the installed ``heliostat``."""
    return [str(Path(sys.executable).with_name("heliostat")), *arguments]


def heliostat(*arguments: str, expect: int = 0) -> dict[str, Any]:
    """Run ``heliostat … --json`` in a process of its own; the JSON object it ends with."""
    run = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, env=os.environ, check=False)
    assert run.returncode == expect, run.stderr[-3000:] + run.stdout[-1000:]
    answer: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return answer
