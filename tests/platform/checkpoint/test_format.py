import re
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from heliostat.checkpoint.format import (
    CheckpointManifest,
    ShardRecord,
    SliceRecord,
    StateSlice,
    checkpoint_folder,
    folder_of,
    manifest_fault,
)


def _manifest(*slices: tuple[str, int, int], tensors: dict[str, int], key: str | None = None) -> CheckpointManifest:
    records = tuple(
        SliceRecord(tensor=name, offset=offset, numel=numel, dtype="F32", start_byte=0)
        for name, offset, numel in slices
    )
    key = key or f"{checkpoint_folder(7, 1)}/rank-00000.safetensors"
    shard = ShardRecord(key=key, size_bytes=0, chunk_bytes=16, chunk_sha256=(), slices=records)
    return CheckpointManifest(
        step=7, attempt=1, world_size=1, shards=(shard,), tensors=tensors, counters={}, digest_of_ids=""
    )


@pytest.mark.parametrize(
    ("slices", "tensors", "fault"),
    [
        ([("m|a", 0, 4), ("m|a", 4, 6)], {"m|a": 10}, None),
        ([("m|a", 4, 6), ("m|a", 0, 5)], {"m|a": 10}, None),  # an overlap is harmless
        ([("m|a", 0, 0)], {"m|a": 0}, None),
        ([], {"m|a": 3}, "elements from 0 on of m.a"),
        ([("m|a", 0, 4), ("m|a", 5, 5)], {"m|a": 10}, "elements from 4 on of m.a"),
        ([("m|a", 0, 9)], {"m|a": 10}, "elements from 9 on of m.a"),
        ([("m|a", 0, 11)], {"m|a": 10}, "a slice ends at 11"),
        ([("m|a", 0, 10), ("m|b", 0, 1)], {"m|a": 10}, "m.b is in .* but not among the tensors"),
    ],
)
def test_manifest_fault__table(slices: list[tuple[str, int, int]], tensors: dict[str, int], fault: str | None) -> None:
    found = manifest_fault(_manifest(*slices, tensors=tensors))
    assert found is None if fault is None else re.search(fault, str(found))


def test_manifest_fault__a_shard_of_another_checkpoint() -> None:
    stray = f"{checkpoint_folder(6, 1)}/rank-00000.safetensors"
    assert "lies outside" in str(manifest_fault(_manifest(tensors={}, key=stray)))


def test_manifest__survives_json_with_its_types() -> None:
    counters: dict[str, int | float | str] = {"optimizer_step": 3, "loss_scale": 2.0, "note": "1"}
    manifest = _manifest(tensors={"m|a": 0}).model_copy(update={"counters": counters})
    again = CheckpointManifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest
    assert [type(value) for value in again.counters.values()] == [int, float, str]


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version": 2}',
        '{"unknown": 1}',
        _manifest(tensors={}).model_dump_json().replace('"step":7', '"step":"7"'),
        _manifest(tensors={}).model_dump_json().replace('"size_bytes":0', '"size_bytes":99'),
    ],
)
def test_manifest__refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(ValidationError):
        CheckpointManifest.model_validate_json(text)


def test_state_slice__refuses_shapes_and_names_that_the_format_cannot_hold() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        StateSlice("fp32", "a", 0, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="offset"):
        StateSlice("fp32", "a", -1, torch.zeros(2))
    for kind, parameter in (("fp|32", "a"), ("fp32", "a|b"), ("", "a")):
        with pytest.raises(ValueError, match="names without"):
            StateSlice(kind, parameter, 0, torch.zeros(2))


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (f"{checkpoint_folder(7, 12)}/manifest.json", (checkpoint_folder(7, 12), 12)),
        (checkpoint_folder(123456789, 1), ("checkpoints/step-123456789/attempt-1", 1)),
        ("checkpoints/step-00000007/attempt-1x/manifest.json", None),
        ("checkpoints/notes.txt", None),
        ("commits/00000001.json", None),
    ],
)
def test_folder_of__table(key: str, place: tuple[str, int] | None) -> None:
    assert folder_of(key) == place


def test_format__log_and_verify_import_without_torch() -> None:
    modules = ", ".join(f"heliostat.checkpoint.{name}" for name in ("format", "log", "verify", "retention"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
