"""A run without Ray and DeepSpeed; one that goes on with both is in ``test_pretrain.py``."""

from pathlib import Path

from support.projects import heliostat, store_images, write_recipe
from support.whole_runs import assert_run_equals_plain_training

from heliostat.storage import open_store

STEPS = 12


def test_run__single_process_is_the_same_run(tmp_path: Path) -> None:
    root = open_store(str(tmp_path / "root"))
    recipe = write_recipe(tmp_path / "tiny.yaml", root.url, steps=STEPS)
    store_images(root)
    result = heliostat("run", str(recipe), "--single-process")
    assert result["steps"] == STEPS
    assert_run_equals_plain_training(root, "tiny")
