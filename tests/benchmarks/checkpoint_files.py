"""Writing and reading a checkpoint beside plain programs that move the same bytes: part of bench_trainer.py.

A plain writer writes a file and syncs it, as a commit must be on the disk when it is in the log; a plain reader reads a
file; both in pieces of 1 MiB, without a hash. On S3 the plain writer is boto3's ``upload_file`` with its own defaults
(8 MiB parts, 10 threads), from a file that was just written. Every file is read from the system's memory, as all of
them fit; ours are read in the slices of two workers' shards.
"""

import hashlib
import os
from pathlib import Path
from uuid import uuid4

import boto3
import torch

from frame import Spread, in_turns
from heliostat.checkpoint.format import CheckpointManifest, StateSlice, checkpoint_folder
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.writer import write_shard
from heliostat.storage import Store, open_store
from s3_server import BUCKET

_TENSORS = 16
_PIECE_BYTES = 2**20
_BYTES_PER_MIB = 2**20


def random_state(size_bytes: int) -> list[StateSlice]:
    """A worker's share of a state, in tensors of equal size."""
    generator = torch.Generator().manual_seed(0)
    numel = size_bytes // _TENSORS // 4
    return [
        StateSlice("master", f"weight{index}", 0, torch.randn(numel, generator=generator)) for index in range(_TENSORS)
    ]


def measure_files(folder: Path, size_bytes: int, runs: int) -> dict[str, Spread]:
    """MiB per second of our writer and reader and of the plain ones, on a local folder."""
    state = random_state(size_bytes)
    store = open_store(str(folder / "root"))
    payload = torch.cat([each.values for each in state]).view(torch.uint8).numpy().data
    plain = folder / "plain"
    manifest = _saved(store, state)
    reader_of = {each.parameter: len(each.values) for each in state}

    def read_ours() -> None:
        reader = CheckpointReader(store, manifest)
        for name, numel in reader_of.items():
            for start, stop in ((0, numel // 2), (numel // 2, numel)):
                reader.read("master", name, start, stop)

    def read_hashed() -> None:
        with plain.open("rb", buffering=0) as file:
            buffer = bytearray(_PIECE_BYTES)
            digest = hashlib.sha256()
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])

    costs = in_turns(
        {
            "save": lambda: _save_and_remove(store, state),
            "plain_write": lambda: _plain_write(plain, payload),
            "load": read_ours,
            "plain_read": lambda: _plain_read(plain),
            "plain_read_and_hash": read_hashed,
        },
        runs=runs,
    )
    return {name: cost.per(size_bytes / _BYTES_PER_MIB) for name, cost in costs.items()}


def measure_s3(endpoint: str, folder: Path, size_bytes: int, runs: int) -> dict[str, Spread]:
    """MiB per second of our writer and of boto3's on an S3 server; the environment leads to it."""
    state = random_state(size_bytes)
    store = open_store(f"s3://{BUCKET}/bench-{uuid4().hex}")
    plain = folder / "upload"
    _plain_write(plain, torch.cat([each.values for each in state]).view(torch.uint8).numpy().data)
    client = boto3.client("s3", endpoint_url=endpoint)
    costs = in_turns(
        {
            "save_s3": lambda: _save_and_remove(store, state),
            "plain_upload": lambda: client.upload_file(str(plain), BUCKET, "plain"),
        },
        runs=runs,
    )
    return {name: cost.per(size_bytes / _BYTES_PER_MIB) for name, cost in costs.items()}


def _saved(store: Store, state: list[StateSlice]) -> CheckpointManifest:
    shard = write_shard(store, checkpoint_folder(0, 1), 0, state)
    return CheckpointManifest(
        step=0,
        attempt=1,
        world_size=1,
        shards=(shard,),
        tensors={each.tensor: len(each.values) for each in state},
        counters={},
        digest_of_ids="",
    )


def _save_and_remove(store: Store, state: list[StateSlice]) -> None:
    folder = checkpoint_folder(1, 1)
    shard = write_shard(store, folder, 0, state)
    store.delete(shard.key)


def _plain_write(path: Path, payload: memoryview) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(payload), _PIECE_BYTES):
            file.write(payload[start : start + _PIECE_BYTES])
        os.fsync(file.fileno())


def _plain_read(path: Path) -> None:
    buffer = bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
