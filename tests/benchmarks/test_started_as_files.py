"""Every bench can be started as a file, from anywhere, with nothing but its own folder on Python's path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = sorted(Path(__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize("bench", BENCHES, ids=lambda path: path.stem)
def test_bench__tells_its_flags(bench: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, str(bench), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-500:]
    assert "--quick" in said.stdout
