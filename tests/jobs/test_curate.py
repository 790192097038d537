"""A curation by its command: run, asked, and asked for again."""

import hashlib
import json
from pathlib import Path

import pytest
from support.curation_pictures import encoded, recompressed, scene
from support.small_datasets import store_dataset

from heliostat.errors import UnknownImageError
from heliostat.storage import open_store
from heliostat.storage.layout import curation_store
from heliostat_jobs.cli import app

RECIPE = """
kind: curate
name: best
root: {root}
pool: [crawl]
filter: {{min_side_px: 1}}
dedup: {{neighbours: 8, benchmarks: [test]}}
embedding: {{source: copy}}
cluster: {{levels: [{{clusters: 4, resamplings: 1}}, {{clusters: 2, resamplings: 0}}]}}
sample: 6
"""


def heliostat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_curate__is_run_once_reported_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = open_store(str(tmp_path / "root"))
    store_dataset(root, [recompressed(0), *(encoded(scene(number)) for number in range(10))], "crawl")
    store_dataset(root, [recompressed(9)], "test")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root.url))
    assert heliostat("run", str(recipe), "--json", "--set", "until=filter") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["finished"], found["until"]) == (False, "filter")
    assert heliostat("run", str(recipe), "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["pool"], found["was_finished"]) == (6, 11, False)
    reasons = {each["reason"]: each["images"] for each in found["reasons"]}
    assert reasons["near-duplicate"] == 1
    assert reasons["in a component with an image of a benchmark"] == 1
    page = curation_store(root, "best").get("report.html").decode()
    assert "Near-duplicates" in page
    assert "Clusters and balance" in page
    assert heliostat("run", str(recipe), "--json") == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["was_finished"], again["manifest_sha256"]) == (True, found["manifest_sha256"])
    assert heliostat("run", str(recipe), "--set", "sample=5") == 2
    assert "sample 6 -> 5" in capsys.readouterr().err
    image = tmp_path / "copy.jpg"
    image.write_bytes(recompressed(0))
    assert heliostat("curation", "contains", f"{root.url}/best", str(image)) == 1
    assert "near-duplicate" in capsys.readouterr().out
    assert heliostat("curation", "explain", f"{root.url}/best", "ab" * 32) == 2
    assert UnknownImageError.code in capsys.readouterr().err
    best = f"{root.url}/best"
    originals = [encoded(scene(number)) for number in range(10)]
    kept = [
        number
        for number, data in enumerate(originals)
        if heliostat("curation", "contains", best, hashlib.sha256(data).hexdigest()) == 0
    ]
    assert len(kept) == 6
    image.write_bytes(encoded(scene(kept[0]), quality=60))
    capsys.readouterr()
    assert heliostat("curation", "contains", best, str(image), "--near", "--json") == 0
    nearest = json.loads(capsys.readouterr().out)["nearest"]
    assert nearest["id"] == hashlib.sha256(originals[kept[0]]).hexdigest()
    assert (nearest["is_copy"], nearest["compared"]) == (True, 6)
    image.write_bytes(encoded(scene(50)))
    assert heliostat("curation", "contains", best, str(image), "--near") == 1
    assert "no copy of it is in" in capsys.readouterr().out
    assert heliostat("curation", "contains", best, "ab" * 32, "--near") == 2
