"""F22 and F23 at ingest: one image in a hundred was made to hurt; some kill the process that decodes them."""

import os
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from faults.frame import Outcome
from faults.rig import Rig, images
from support import failing_decoder
from support.hostile import hostile_images

from heliostat.data.ingest import IngestOptions, ingest
from heliostat.data.ingest.first_pass import DECODER_MODULE
from heliostat.data.manifest import Shard, load_manifest
from heliostat.data.quarantine import load_quarantine
from heliostat.storage import open_store
from heliostat.storage.layout import dataset_store
from heliostat_cluster.local import local_ray

_GOOD, _BAD = 2000, 20
_NAME = "photos"
_TESTS = str(Path(failing_decoder.__file__).parents[1])
_DEADLY = {
    failing_decoder.ABORT: "decoder-crashed",
    failing_decoder.SEGFAULT: "decoder-crashed",
    failing_decoder.GARBAGE: "decoder-crashed",
    failing_decoder.KILLED: "too-much-memory",  # what the kernel does then
}


@dataclass(frozen=True)
class _Ingested:
    shards: tuple[Shard, ...]
    """Named by their hashes: the same shards are the same images."""
    refused: dict[str, str]
    """Reason by name."""
    images_per_s: float


def inject(rig: Rig) -> list[Outcome]:
    """The same good images with hostile ones among them, with deadly ones, and alone."""
    good = {f"{number:05}.png": data for number, data in enumerate(images(_GOOD))}
    hostile = rig.rng.sample([file for file in hostile_images() if file.reason], _BAD)
    words = {f"deadly-{word[1:].decode()}.png": word for word in _DEADLY}
    deadly = {name: good["00000.png"] + word for name, word in words.items()}
    with patch.dict(os.environ, PYTHONPATH=_TESTS), local_ray(num_cpus=os.cpu_count() or 1):
        # First, because it also pays for the start of Ray's processes: the two whose speed is compared do not.
        killed = _ingested(rig, "deadly", good | deadly, failing_decoder.MODULE)
        mixed = _ingested(rig, "hostile", good | {f"bad-{file.name}": file.data for file in hostile})
        alone = _ingested(rig, "alone", good)
    cost_ms = (_GOOD / mixed.images_per_s - _GOOD / alone.images_per_s) / _BAD * 1000
    note = f"{alone.images_per_s:.0f} images/s without, {mixed.images_per_s:.0f} with: {cost_ms:.0f} ms each"
    named = {f"bad-{file.name}": str(file.reason) for file in hostile}
    dead = {name: _DEADLY[word] for name, word in words.items()}
    return [
        _judged("F22 1 % hostile images", mixed, alone, named, note),
        _judged("F23 decoder dies at ingest", killed, alone, dead),
    ]


def _ingested(rig: Rig, name: str, files: dict[str, bytes], decoder: str = DECODER_MODULE) -> _Ingested:
    folder, root = rig.folder / name, open_store(f"{rig.root_url}/{name}")
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    result = ingest(folder, root, _NAME, IngestOptions(decoder_module=decoder))
    manifest = load_manifest(root, _NAME)
    refused = {file.source: str(file.reason) for file in load_quarantine(dataset_store(root, _NAME), manifest)}
    return _Ingested(manifest.shards, refused, result.images / result.duration_s)


def _judged(fault: str, found: _Ingested, alone: _Ingested, named: dict[str, str], note: str = "") -> Outcome:
    if found.shards != alone.shards:
        return Outcome(fault, survived=False, is_exact=False, note="not the dataset of the good images")
    wrong = {name for name, _ in found.refused.items() ^ named.items()}
    note = f"not named as they should be: {sorted(wrong)}" if wrong else note
    return Outcome(fault, survived=not wrong, is_exact=True, note=note)
