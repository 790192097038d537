"""The house stands as it is drawn: nothing hides Python's own modules, and the light parts stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("platform", "jobs", "evaluation", "cluster")


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_source_root__holds_one_package_and_no_module(root: str) -> None:
    assert not list((ROOT / root).glob("*.py"))
    assert [path.parent.name for path in (ROOT / root).glob("*/__init__.py")] == [
        "heliostat" if root == "platform" else f"heliostat_{root}"
    ]


def test_tests__hold_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_platform__is_pythons_own_at_the_repository_root() -> None:
    code = "import platform; print(platform.machine())"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("module", ["heliostat", "heliostat.config", "heliostat.storage", "heliostat_jobs.cli"])
def test_import__of_what_a_client_needs_loads_no_engine(module: str) -> None:
    heavy = ("torch", "ray", "deepspeed", "matplotlib", "cv2", "PIL")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
