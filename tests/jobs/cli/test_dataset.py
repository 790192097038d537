import json
import re
from pathlib import Path

import pytest
from PIL import Image

from heliostat.data.images import DEFAULT_LIMITS
from heliostat.data.ingest import IngestProgress, IngestResult
from heliostat.data.manifest import load_manifest
from heliostat.errors import InvalidValueError
from heliostat.storage import open_store
from heliostat_jobs.cli import app
from heliostat_jobs.cli.dataset import limits_with, split_destination, summary
from heliostat_jobs.ingest import show_ingest

RESULT = IngestResult(
    manifest_sha256="ab" * 32,
    images=1200,
    dataset_images=5000,
    duplicates=3,
    quarantined=2,
    reasons={"empty": 1, "truncated": 1},
    skipped=4,
    resumed=700,
    size_bytes=3 * 2**20,
    duration_s=2.5,
)


def heliostat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_ingest__stores_a_folder_and_says_so_in_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shade in range(3):
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (shade, 0, 0)).save(tmp_path / "photos" / "cat" / f"{shade}.png")
    whole = (tmp_path / "photos" / "cat" / "0.png").read_bytes()
    (tmp_path / "photos" / "half.png").write_bytes(whole[:-10])
    root = tmp_path / "root"
    assert heliostat("dataset", "ingest", str(tmp_path / "photos"), f"{root}/photos", "--json") == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["resumed"] == 0
    assert (answer["dataset"], answer["images"], answer["quarantined"]) == ("photos", 3, 1)
    assert answer["reasons"] == {"truncated": 1}
    assert load_manifest(open_store(str(root)), "photos").sha256 == answer["manifest_sha256"]
    assert "storing: 3/3 images" in output.err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"error: HS-DATA-001: the source '.*/photos' does not exist\. Give a folder of images, "),
        ({}, r"error: HS-DATA-002: the source '.*/photos' holds no image: it is empty\. Give a folder "),
        ({"a.txt": b"x", "b.txt": b"y"}, r"error: HS-DATA-002: .* holds no image: it holds 2 \.txt files\. "),
    ],
)
def test_ingest__a_useless_source_is_one_line_before_ray_starts(
    files: dict[str, bytes] | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if files is not None:
        (tmp_path / "photos").mkdir()
        for name, content in files.items():
            (tmp_path / "photos" / name).write_bytes(content)
    assert heliostat("dataset", "ingest", str(tmp_path / "photos"), str(tmp_path / "root" / "photos")) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert re.match(message, output.err)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("destination", ["photos", "/photos", "s3://photos", "s3://", ""])
def test_split_destination__needs_a_root_and_a_name(destination: str) -> None:
    with pytest.raises(InvalidValueError, match=r"HS-CONF-004: the destination .* is not ROOT/NAME"):
        split_destination(destination)


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("./place/photos", ("./place", "photos")),
        ("root/photos/", ("root", "photos")),
        ("s3://bucket/photos", ("s3://bucket", "photos")),
        ("s3://bucket/a/b/photos", ("s3://bucket/a/b", "photos")),
    ],
)
def test_split_destination__takes_the_last_part_as_the_name(destination: str, expected: tuple[str, str]) -> None:
    assert split_destination(destination) == expected


def test_summary__gives_the_numbers_the_quarantine_and_the_next_command() -> None:
    assert summary("./my root", "photos", RESULT) == [
        "photos: 1,200 images added, 5,000 in all (3.0 MiB written in 2.5 s)",
        "left out: 3 duplicates, 2 in quarantine, 4 hidden files and companions",
        "quarantine: 1 empty, 1 truncated; every file is named in ./my root/datasets/photos/quarantine/*.jsonl",
        "resumed: 700 items had been checked by an earlier start",
        f"manifest: {'ab' * 32}",
        "next: heliostat run RECIPE.yaml --set 'root=\"./my root\"' --set dataset.name=photos",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow-format", "svg"], r"error: HS-CONF-004: --allow-format SVG: there is no codec for it\. Formats are "),
        (["--allow-urls", "--labels", "labels.csv"], r"error: HS-CONF-004: a file of labels goes with a folder"),
        (["--resize-px", "0"], r"error: HS-CONF-011: "),
        (["--max-quarantined-share", "2"], r"error: HS-CONF-011: "),
        ([], r"error: HS-CONF-004: .* fetched only on request"),
    ],
)
def test_ingest__impossible_options_are_told_before_ray_starts(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "urls.txt").write_text("https://example.org/one.jpg\n")
    assert heliostat("dataset", "ingest", str(tmp_path / "urls.txt"), str(tmp_path / "root" / "photos"), *options) == 2
    assert re.match(message, capsys.readouterr().err)


def test_limits_with__adds_formats_to_the_usual_ones() -> None:
    assert limits_with(["tiff", "GIF"]).formats == {"JPEG", "PNG", "WEBP", "TIFF", "GIF"}
    assert limits_with([]) == DEFAULT_LIMITS


def test_show_ingest__names_rounds_after_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    with show_ingest() as report:
        report(IngestProgress("check", 10, None, 0))
        report(IngestProgress("check", 12, 12, 0, round=1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("checking: 10 images")
    assert lines[-1].startswith("round 2: checking: 12/12 images")


def test_show_ingest__shows_one_stage_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    with show_ingest() as report:
        report(IngestProgress("check", 10, 10, 1))
        report(IngestProgress("store", 4, 9, 1))
        report(IngestProgress("store", 9, 9, 1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("checking: 10/10 images")
    assert lines[-1].startswith("storing: 9/9 images")
