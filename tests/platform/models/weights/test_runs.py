import json
from pathlib import Path

import pytest
from support.backbones import RUN_MODEL, same_weights, small_backbone, transformer, write_run

from heliostat.errors import (
    CorruptLockError,
    IncompatibleCheckpointError,
    NoCheckpointError,
    WeightsNotFoundError,
)
from heliostat.models.vit import VisionTransformer
from heliostat.models.weights.load import load_backbone
from heliostat.storage import open_store


def teacher(seed: int) -> VisionTransformer:
    return small_backbone(seed, **RUN_MODEL)


@pytest.mark.parametrize("workers", [1, 3])
def test_load_backbone__the_teacher_of_a_run(workers: int, tmp_path: Path) -> None:
    write_run(tmp_path, "r", {3: teacher(3), 6: teacher(6)}, workers)
    run = tmp_path / "runs" / "r"
    assert same_weights(load_backbone(run), teacher(6))
    assert same_weights(load_backbone(run, step=3), teacher(3))
    assert load_backbone(run, channels=5).config.channels == 5
    assert transformer(load_backbone(run)).config.heads == 2


@pytest.mark.s3
def test_load_backbone__the_teacher_of_a_run_on_s3(s3_root: str, tmp_path: Path) -> None:
    write_run(tmp_path, "r", {3: teacher(3)})
    run = open_store(f"{s3_root}/runs/r")
    for path in (tmp_path / "runs" / "r").rglob("*"):
        if path.is_file():
            run.put(str(path.relative_to(tmp_path / "runs" / "r")), path.read_bytes())
    assert same_weights(load_backbone(f"{s3_root}/runs/r"), teacher(3))


def test_load_backbone__a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    write_run(tmp_path, "r", {3: teacher(3), 6: teacher(6)})
    run = tmp_path / "runs" / "r"
    (shard, *_) = (run / "checkpoints" / "step-00000006").rglob("rank-00001.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert same_weights(load_backbone(run), teacher(3))


def test_load_backbone__no_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, "r", {})
    with pytest.raises(NoCheckpointError, match="run 'r' has committed no checkpoint yet"):
        load_backbone(tmp_path / "runs" / "r")


def test_load_backbone__no_checkpoint_of_this_step(tmp_path: Path) -> None:
    write_run(tmp_path, "r", {3: teacher(3), 6: teacher(6)})
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 4\. There are checkpoints of 3, 6\."):
        load_backbone(tmp_path / "runs" / "r", step=4)


def test_load_backbone__a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "r", {3: small_backbone(**{**RUN_MODEL, "registers": 0})})
    with pytest.raises(IncompatibleCheckpointError, match=r"step-00000003/attempt-1 .* 1 missing: register_tokens"):
        load_backbone(tmp_path / "runs" / "r")


def test_load_backbone__what_is_no_run(s3_root_of_nothing: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"is no run: it has no config\.lock\.json"):
        load_backbone(s3_root_of_nothing)


@pytest.fixture
def s3_root_of_nothing(s3_root: str) -> str:
    return f"{s3_root}/runs/none"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"kind": "pretrain", "values": {}})])
def test_load_backbone__a_lock_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    write_run(tmp_path, "r", {})
    (tmp_path / "runs" / "r" / "config.lock.json").write_text(text)
    with pytest.raises(CorruptLockError, match="is not what this version wrote"):
        load_backbone(tmp_path / "runs" / "r")
