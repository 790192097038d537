"""``kind: export``: a run's backbone lies in the store, and computes what the run's teacher computes."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from support.projects import heliostat, store_images, write_recipe

import heliostat as library
from heliostat.config import load_recipe
from heliostat.errors import ChangedConfigError
from heliostat.storage.local import LocalStore
from heliostat_jobs.export_run import export_run


def test_export_run__is_checked_kept_and_found_again(tmp_path: Path) -> None:
    root = LocalStore(tmp_path / "root")
    store_images(root)
    heliostat("run", str(write_recipe(tmp_path / "r.yaml", root.url, steps=2)), "--single-process")
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"kind": "export", "name": "ours", "root": root.url, "run": "tiny", "step": 2}))
    made = export_run(load_recipe(path, [], {}))
    (file,) = [each for each in made.told["files"] if each["name"].endswith(".safetensors")]
    data = root.get(f"exports/ours/files/{file['name']}")
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
    images = torch.rand(2, 3, 16, 16)
    teacher = library.load_backbone(f"{root.url}/runs/tiny", step=2)
    exported = library.load_backbone(f"{root.url}/exports/ours/files")
    with torch.inference_mode():
        assert torch.allclose(teacher([images])[0].cls_BD, exported([images])[0].cls_BD, atol=1e-5)
    assert export_run(load_recipe(path, [], {})).to_json() == made.to_json()
    with pytest.raises(ChangedConfigError, match="format safetensors -> timm"):
        export_run(load_recipe(path, ["format=timm"], {}))
