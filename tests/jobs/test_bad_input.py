"""Everything a user can get wrong before a run starts: one line with a code, the value, the rule and the way out."""

import re
import socket
from pathlib import Path

import pytest
from PIL import Image
from support.projects import store_images, write_recipe

from heliostat.storage import open_store
from heliostat_jobs.cli import app


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line that a command prints before it exits with ``code``."""
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    printed = capsys.readouterr()
    assert end.value.code == code, printed
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err
    return lines[0]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "tiny.yaml", str(tmp_path / "root")))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.global_batch=18", r"HS-CONF-006: training\.global_batch 18 is not a multiple .*slot_batch 4\. Set "),
        ("scaling.workers=9", r"HS-CONF-007: 9 workers .* only 4 slots .*\. Set scaling\.workers to at most 4"),
        ("trainng.steps=3", r"HS-CONF-003: unknown key trainng\.steps.* training\.steps"),
        ("training.steps=many", r"HS-CONF-004: training\.steps .*many"),
        ("training.steps", r"HS-CONF-005: .*training\.steps.*"),
        ("augmentation.global_px=17", r"HS-CONF-004: .*global_px 17 .*multiple of .*patch_px 4"),
    ],
)
def test_run__a_wrong_value_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, override: str, line: str
) -> None:
    assert re.search(line, fails(capsys, 2, "run", recipe, "--set", override))
    assert not (tmp_path / "root").exists()


def test_run__a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "HS-CONF-001" in fails(capsys, 2, "run", str(tmp_path / "none.yaml"))


def test_run__a_dataset_that_is_not_there_names_the_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str
) -> None:
    assert "HS-DATA-003: there is no dataset 'tiny'" in fails(capsys, 2, "run", recipe)
    assert not (tmp_path / "root" / "runs").exists()


def test_run__an_evaluation_of_a_run_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(f"kind: evaluate\nname: knn\nroot: {tmp_path}\nrun: nobody\nbank: a\nqueries: b\n")
    assert "HS-RUN-004: there is no run 'nobody'" in fails(capsys, 2, "run", str(recipe))


@pytest.mark.parametrize("arguments", [("run",), ("dataset", "ingest")])
def test_store__that_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-value")
        line = fails(capsys, 3, *_with_root(arguments, tmp_path, "s3://bucket/prefix"))
    assert "HS-STOR-004" in line
    assert endpoint.removeprefix("http://") in line
    assert "canary" not in line


@pytest.mark.s3
@pytest.mark.parametrize("arguments", [("run",), ("dataset", "ingest")])
def test_store__that_refuses_the_credentials(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    s3_root: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret")
    line = fails(capsys, 3, *_with_root(arguments, tmp_path, s3_root))
    assert "HS-STOR-005" in line
    assert "canary" not in line


@pytest.mark.parametrize("content", [None, {}, {"a.txt": b"text", "b.txt": b"text"}])
def test_demo__a_folder_of_no_use(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: dict[str, bytes] | None
) -> None:
    folder = tmp_path / "data"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    code = "HS-DATA-001" if content is None else "HS-DATA-002"
    line = fails(capsys, 2, "demo", "--data", str(folder), "--out", str(tmp_path / "out"))
    assert code in line
    assert not list((tmp_path / "out").rglob("*"))


def test_demo__a_single_image_cannot_be_split(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "cat" / "one.png")
    line = fails(capsys, 2, "demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert "HS-DATA-002" in line
    assert "hold out" in line


def _with_root(arguments: tuple[str, ...], tmp_path: Path, root: str) -> list[str]:
    if arguments == ("run",):
        return ["run", str(write_recipe(tmp_path / "tiny.yaml", root))]
    (tmp_path / "data").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "one.png")
    return [*arguments, str(tmp_path / "data"), f"{root}/photos"]


@pytest.mark.parametrize("url", ["s3://user:canary/pass@bucket/x", "s3://user:canary@bucket/x"])
def test_store__credentials_in_an_address_are_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
) -> None:
    line = fails(capsys, 2, *_with_root(("dataset", "ingest"), tmp_path, url))
    assert "HS-STOR-006" in line
    assert "canary" not in line


def test_store__credentials_in_the_endpoint_are_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:canary/pass@127.0.0.1:9")
    line = fails(capsys, 2, *_with_root(("dataset", "ingest"), tmp_path, "s3://bucket/x"))
    assert "HS-STOR-006" in line
    assert "canary" not in line


def test_run__a_lock_file_that_was_edited_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str
) -> None:
    lock = tmp_path / "root" / "runs" / "tiny" / "config.lock.json"
    lock.parent.mkdir(parents=True)
    for content in ("", "[]", "{}", '{"schema_version": 1}'):
        lock.write_text(content)
        assert "HS-RUN-006" in fails(capsys, 1, "run", recipe)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("scaling.accelerator=gpu", "HS-CONF-012"),
        ("streaming.crops_on=pool", "HS-DATA-010"),  # the embedded Ray has no pool of CPU nodes
    ],
)
def test_run__more_than_ray_has_is_told_before_anything_waits_for_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, override: str, code: str
) -> None:
    store_images(open_store(str(tmp_path / "root")))
    assert code in fails(capsys, 2, "run", recipe, "--set", "streaming.crop_processes=2", "--set", override)


def silent_port() -> int:
    """Where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "[::1]:{}", "127.0.0.1", "ray://127.0.0.1:{}", "no.invalid:{}"])
@pytest.mark.timeout(60)  # Ray itself tries for minutes
def test_run__an_address_without_a_cluster_is_told_soon(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, address: str
) -> None:
    store_images(open_store(str(tmp_path / "root")))
    address = address.format(silent_port())
    line = fails(capsys, 3, "run", recipe, "--address", address)
    assert f"HS-RUN-008: no Ray cluster can be joined at {address} (" in line


def test_run__an_address_and_a_single_process_exclude_each_other(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    line = fails(capsys, 2, "run", recipe, "--address", "127.0.0.1:6379", "--single-process")
    assert "--single-process and --address exclude each other" in line
