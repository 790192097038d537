"""The wheel of our own code: what pip installs from it is what is installed here, and nothing else comes with it."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import heliostat
from heliostat_jobs.submission.package import PACKAGES, build_wheel


def test_build_wheel__installs_without_a_network_and_runs(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "wheels")
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, f"--target={target}", str(wheel)], check=True, capture_output=True)
    asked = "import heliostat, heliostat_jobs.kinds; print(heliostat.__file__, heliostat.__version__)"
    answer = subprocess.run(
        [sys.executable, "-c", asked],
        env={"PYTHONPATH": str(target)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    file, version = answer.stdout.split()
    assert Path(file).is_relative_to(target)
    assert version == wheel.name.split("-")[1]
    assert version.startswith(f"{heliostat.__version__}+")
    ours = Path(heliostat.__file__).parents[1]
    files = [path for path in (target / "heliostat").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(target) for path in files} == {
        path.relative_to(ours)
        for path in (ours / "heliostat").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_build_wheel__asks_for_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        packages = {name.partition("/")[0] for name in archive.namelist()}
    assert metadata.get_all("Requires-Dist") is None
    assert {package for package in packages if not package.endswith(".dist-info")} == set(PACKAGES)


def test_build_wheel__is_built_once(tmp_path: Path) -> None:
    first = build_wheel(tmp_path)
    written_at = first.stat().st_mtime_ns
    assert build_wheel(tmp_path) == first
    assert first.stat().st_mtime_ns == written_at
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert build_wheel(tmp_path / "elsewhere").read_bytes() == first.read_bytes()
