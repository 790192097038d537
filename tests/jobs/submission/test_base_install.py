"""The client needs nothing of the extras: with none of their packages it plans, submits and looks."""

import subprocess
import sys
from pathlib import Path

from support.projects import store_images, write_recipe

from heliostat.storage.local import LocalStore

EXTRAS = ("torch", "deepspeed", "faiss", "jinja2", "matplotlib", "cv2", "PIL", "safetensors", "scipy", "simplejpeg")
CLIENT = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
from heliostat_jobs import Client, JobHandle
from heliostat_jobs.cli.app import app
from heliostat_jobs.board.server import Board
app(sys.argv[1:])
"""


def test_client__works_without_any_extra(tmp_path: Path) -> None:
    root = LocalStore(tmp_path / "root")
    store_images(root)
    recipe = str(write_recipe(tmp_path / "r.yaml", root.url))
    expected = {
        ("plan", recipe): (0, "submit would take it"),
        ("status", "tiny", "--root", root.url): (2, "HS-RUN-004"),
        ("submit", recipe, "--address", "http://127.0.0.1:1"): (3, "HS-RUN-008"),
        ("run", recipe): (2, "HS-CONF-009"),
    }
    for arguments, (status, words) in expected.items():
        said = subprocess.run(
            [sys.executable, "-c", CLIENT, *arguments],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == status, said.stdout + said.stderr
        assert words in said.stdout + said.stderr
