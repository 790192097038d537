from pathlib import Path

import pytest

from heliostat.config import load_recipe
from heliostat.config.curate import CurateRecipe
from heliostat.config.provenance import lock, unlock
from heliostat.errors import ConfigError

RECIPE = """
kind: curate
name: best
pool: [crawl, more]
dedup: {threshold: 0.6, benchmarks: [imagenet]}
embedding: {source: "run:vit"}
retrieve:
  - {dataset: flowers, method: sample, neighbours: 32}
  - {dataset: pets}
cluster:
  levels: [{clusters: 1000, resamplings: 1}, {clusters: 100}]
sample: 5000
"""


def load(tmp_path: Path, text: str = RECIPE, *overrides: str) -> CurateRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = load_recipe(path, overrides, {}).recipe
    assert isinstance(recipe, CurateRecipe)
    return recipe


def test_curate_recipe__reads_lists_of_sections_and_survives_its_lock(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert [each.neighbours for each in recipe.retrieve] == [32, 4]
    assert [each.clusters for each in recipe.cluster.levels] == [1000, 100]
    assert recipe.dedup.embedding.source == "copy"
    resolved = load_recipe(tmp_path / "recipe.yaml", [], {})
    assert unlock(lock(resolved)) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sample: 5000", "samples: 5000", "sample"),
        ("dataset: pets", "datset: pets", "datset"),
        ("clusters: 100}", "clusters: 2000}", "fewer clusters"),
        ('source: "run:vit"', "source: null", "embedding.source is null"),
        ("levels: [{clusters: 1000, resamplings: 1}, {clusters: 100}]", "levels: []", "cluster.levels"),
        ("pool: [crawl, more]", "pool: [crawl, best]", "overwrite"),
        ("pool: [crawl, more]", "pool: [crawl, crawl]", "twice"),
        ("pool: [crawl, more]", "pool: []", "pool"),
        ("neighbours: 32", "neighbours: 0", "greater than 0"),
        ("threshold: 0.6,", "embedding: {source: null},", "dedup.benchmarks and dedup.existing need an embedding"),
        ("sample: 5000", "sample: 5000\nsearch: {gpus: 1, code: rabitq}", "rabitq is not searched by GPUs"),
        ("sample: 5000", "until: export", "until"),
    ],
)
def test_curate_recipe__names_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, RECIPE.replace(old, new))


def test_curate_recipe__takes_sections_from_the_command_line(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "retrieve=[{dataset: cars}]", "cluster.levels=[{clusters: 7}]")
    assert [each.dataset for each in recipe.retrieve] == ["cars"]
    assert recipe.cluster.levels[0].clusters == 7
