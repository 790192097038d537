import hashlib
import json
from pathlib import Path

import pytest
from support.backbones import PX, RUN_MODEL, same_weights, small_backbone, transformer, write_run

from heliostat.errors import WeightsNotFoundError
from heliostat.models.weights.load import load_backbone
from heliostat_jobs.cli import app
from heliostat_jobs.export import resolve


def heliostat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(["checkpoint", "export", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def root(tmp_path: Path) -> str:
    teachers = {step: small_backbone(step, **RUN_MODEL) for step in (3, 6)}
    write_run(tmp_path / "root", "my-run", teachers)
    return str(tmp_path / "root")


def test_export__a_run_by_name_one_line_per_file(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert heliostat("my-run", "--format", "huggingface", "--output", str(output), "--root", root) == 0
    *files, checked = capsys.readouterr().out.splitlines()
    names = sorted(path.name for path in output.iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    for line, name in zip(files, names, strict=True):
        data = (output / name).read_bytes()
        assert line == f"{output / name}  {len(data):,} bytes  sha256 {hashlib.sha256(data).hexdigest()}"
    assert checked == f"checked at {PX} px: outputs differ by at most 0.0e+00"
    assert same_weights(load_backbone(output), small_backbone(6, **RUN_MODEL))


def test_export__an_earlier_step_as_json(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    options = ["--output", output, "--root", root, "--step", "3", "--px", "42", "--json"]
    assert heliostat("my-run", "--format", "safetensors", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["format"], answer["output"], answer["px"]) == ("safetensors", output, 42)
    assert answer["source"] == f"{root}/runs/my-run"
    assert [file["name"] for file in answer["files"]] == ["model.safetensors"]
    loaded = transformer(load_backbone(output))
    assert (loaded.grid, loaded.config.registers) == (3, 2)


def test_export__a_file_and_not_twice(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"{root}/runs/my-run"
    assert heliostat(run, "--format", "safetensors", "--output", str(tmp_path / "a")) == 0
    again = [str(tmp_path / "a" / "model.safetensors"), "--format", "timm", "--output", str(tmp_path / "b")]
    assert heliostat(*again) == 0
    capsys.readouterr()
    assert heliostat(*again) != 0
    assert capsys.readouterr().err == (
        f"error: HS-CKPT-008: {tmp_path / 'b'} already holds model.safetensors, config.json. Give another folder, or "
        "overwrite with --force.\n"
    )
    assert heliostat(*again, "--force") == 0


@pytest.mark.parametrize("name", ["no-such-run", "no/such/file.pth", "runs"])
def test_resolve__neither_a_run_nor_a_file(name: str, root: str) -> None:
    with pytest.raises(WeightsNotFoundError, match=f"'{name}' is neither a file of weights, nor a run under"):
        resolve(name, root)


def test_resolve__a_run_comes_before_a_released_model_of_its_name(tmp_path: Path) -> None:
    assert resolve("dinov2_vits14", str(tmp_path)) == "dinov2_vits14"
    write_run(tmp_path, "dinov2_vits14", {})
    assert resolve("dinov2_vits14", str(tmp_path)) == f"{tmp_path}/runs/dinov2_vits14"
    assert resolve("s3://bucket/runs/x", str(tmp_path)) == "s3://bucket/runs/x"


def test_export__a_folder_that_cannot_be_made_is_an_error_of_the_user(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heliostat("my-run", "--format", "safetensors", "--output", "/proc/x", "--root", root) != 0
    assert capsys.readouterr().err == (
        "error: HS-STOR-008: the folder /proc/x cannot be written: No such file or directory. Give a folder that can "
        "be made and has room.\n"
    )
