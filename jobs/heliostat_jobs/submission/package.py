"""Our own code as a wheel that a cluster runs: built from what is installed here, once for each content.

Ray installs a wheel with everything that its metadata asks for. Ours asks for nothing: torch, Ray and the rest belong
to the cluster's image, and a job must not download them. The version of the wheel holds the hash of its content, since
Ray tells wheels apart by their file names alone.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

from heliostat import __version__

PACKAGES = ("heliostat", "heliostat_cluster", "heliostat_evaluation", "heliostat_jobs")
_LEFT_OUT = frozenset({"__pycache__"})
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file: the same content gives the same bytes."""
_HASH_CHARS = 16


def build_wheel(folder: Path) -> Path:
    """The wheel of the code that runs here; built only if the folder does not have it.

    Args:
        folder: Where wheels are kept, made if need be.
    """
    files = dict(sorted(_files()))
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    version = f"{__version__}+{digest.hexdigest()[:_HASH_CHARS]}"
    path = folder / f"heliostat-{version}-py3-none-any.whl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            part.write(_wheel(files, version))
        Path(part.name).rename(path)
    return path


def _files() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None  # noqa: S101 -- they are one distribution
        assert spec.submodule_search_locations  # noqa: S101 -- packages have folders
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            if path.is_file() and not _LEFT_OUT & set(path.parts):
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _wheel(files: dict[str, bytes], version: str) -> bytes:
    info = f"heliostat-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: heliostat\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: heliostat\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything = {**files, **metadata}
    record = "".join(f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in everything.items())
    everything[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in everything.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
