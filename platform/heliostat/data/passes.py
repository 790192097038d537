"""The two passes of an ingest as Ray Data jobs: what runs in tasks, and how tasks are given out.

There are as many tasks as the cluster has CPUs, each taking half a one: what runs beside them always finds CPUs of its
own. Tasks may end in any order; results that have a place say which.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
from pydantic import ConfigDict

from heliostat import errors
from heliostat.config.base import Section
from heliostat.data.images import ImageLimits, Reason, inspect, too_many_bytes
from heliostat.data.manifest import Shard
from heliostat.data.quarantine import QuarantinedFile
from heliostat.data.shards import SCHEMA, upload_shard, write_shard
from heliostat.data.sources import SourceItem
from heliostat.errors import HeliostatError, RejectedImageError, StoreFailedError
from heliostat.storage import Store

_TASK_CPUS = 0.5
_CHECK_FILES = 64
"""Files per task of the first pass: long against the cost of a task, short against the patience of a progress bar."""


class Candidate(Section):
    """A file that passed the first pass: an image that can be part of the dataset."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    path: bytes
    source: str
    label: str | None
    id: str
    width: int
    height: int
    size_bytes: int


class _Checked(Section):
    """What the first pass found: an image, or the refusal of one."""

    image: Candidate | None = None
    refused: QuarantinedFile | None = None


class _Plan(Section):
    groups: tuple[tuple[Candidate, ...], ...]


class _Packed(Section):
    """What became of a planned shard. ``failure`` is the class and the two texts of an error: Ray keeps no causes."""

    shard: Shard | None = None
    changed: tuple[QuarantinedFile, ...] = ()
    failure: tuple[str, str, str] | None = None


def check_files(
    items: Sequence[SourceItem], limits: ImageLimits
) -> Iterator[tuple[list[Candidate], list[QuarantinedFile]]]:
    """First pass: read, hash and decode files. Yields images and refusals, batch by batch, in no particular order."""
    rows = [{"path": item.path, "source": item.source, "label": item.label} for item in items]
    schema = pa.schema([("path", pa.binary()), ("source", pa.string()), ("label", pa.string())])
    blocks = [pa.Table.from_pylist(rows[at : at + _CHECK_FILES], schema) for at in range(0, len(rows), _CHECK_FILES)]
    for results in _run(blocks, partial(_check_block, limits=limits)):
        checked = [_Checked.model_validate_json(text) for text in results["result"].to_pylist()]
        yield (
            [result.image for result in checked if result.image],
            [result.refused for result in checked if result.refused],
        )


def pack_shards(
    plan: Sequence[Sequence[Sequence[Candidate]]], labels: Mapping[str, int], store: Store, limits: ImageLimits
) -> Iterator[tuple[int, Shard | None, tuple[QuarantinedFile, ...]]]:
    """Second pass: write planned shards (row groups of images) and upload them.

    ``store`` is the dataset's part of the root. Yields, in no particular order, the index of a shard in the plan, the
    shard (``None`` if no image of it was left) and those of its files that are no longer what the first pass saw.

    Raises:
        StorageError: the store, or the local disk on which a shard is assembled, does not cooperate.
    """
    blocks = [
        pa.table({"index": [index], "plan": [_Plan(groups=tuple(map(tuple, groups))).model_dump_json()]})
        for index, groups in enumerate(plan)
    ]
    for results in _run(blocks, partial(_pack_block, labels=dict(labels), store=store, limits=limits)):
        for index, text in zip(results["index"].to_pylist(), results["result"].to_pylist(), strict=True):
            packed = _Packed.model_validate_json(text)
            if packed.failure:
                kind, fact, next_step = packed.failure
                raise getattr(errors, kind)(fact, next_step)
            yield index, packed.shard, packed.changed


def _run(blocks: list[pa.Table], task: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """One task per block; the results as they come."""
    import ray

    if not blocks:
        return
    if not ray.is_initialized():
        raise RuntimeError("ingest needs an initialised Ray")  # a bare start would join any cluster on this machine
    import ray.data

    with _quiet():
        dataset = ray.data.from_arrow(blocks)
        dataset.context.enable_progress_bars = False
        tasks = min(len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1))))
        results = dataset.map_batches(
            task,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
            compute=ray.data.TaskPoolStrategy(size=tasks),
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data announces every execution; the caller has a progress callback."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_block(block: pa.Table, limits: ImageLimits) -> pa.Table:
    results = [_check_file(SourceItem(**row), limits).model_dump_json() for row in block.to_pylist()]
    return pa.table({"result": results})


def _check_file(item: SourceItem, limits: ImageLimits) -> _Checked:
    name = None
    try:
        data = _read(item.path, limits)
        name = hashlib.sha256(data).hexdigest()
        info = inspect(data, limits)
    except RejectedImageError as error:
        return _Checked(refused=_refused(name, item.source, Reason(error.reason), error.fact))
    except OSError as error:
        return _Checked(refused=_refused(name, item.source, Reason.UNREADABLE, error.strerror or type(error).__name__))
    return _Checked(
        image=Candidate(
            path=item.path,
            source=item.source,
            label=item.label,
            id=name,
            width=info.width,
            height=info.height,
            size_bytes=len(data),
        )
    )


def _pack_block(block: pa.Table, labels: dict[str, int], store: Store, limits: ImageLimits) -> pa.Table:
    plans = [_Plan.model_validate_json(text) for text in block["plan"].to_pylist()]
    results = [_pack_shard(plan, labels, store, limits).model_dump_json() for plan in plans]
    return pa.table({"index": block["index"], "result": results})


def _pack_shard(plan: _Plan, labels: dict[str, int], store: Store, limits: ImageLimits) -> _Packed:
    changed: list[QuarantinedFile] = []
    groups = (table for group in plan.groups if (table := _group_table(group, labels, limits, changed)).num_rows)
    try:
        first = next(groups, None)
        if first is None:
            return _Packed(changed=tuple(changed))
        with tempfile.TemporaryDirectory(prefix="heliostat-ingest-") as folder:
            path = Path(folder) / "shard.parquet"
            shard = write_shard(path, chain([first], groups))
            upload_shard(store, shard, path)
    except HeliostatError as error:
        return _Packed(failure=(type(error).__name__, error.fact, error.next_step))
    except OSError as error:
        fact = f"a shard cannot be assembled in {tempfile.gettempdir()}: {error.strerror or type(error).__name__}"
        return _Packed(failure=(StoreFailedError.__name__, fact, "Free space there, or point TMPDIR to another disk"))
    return _Packed(shard=shard, changed=tuple(changed))


def _group_table(
    group: Sequence[Candidate], labels: dict[str, int], limits: ImageLimits, changed: list[QuarantinedFile]
) -> pa.Table:
    """Rows of the images that are still what the first pass saw; the others are added to ``changed``."""
    rows = []
    for image in group:
        try:
            data = _read(image.path, limits)
        except (OSError, RejectedImageError):
            data = b""
        if hashlib.sha256(data).hexdigest() != image.id:
            changed.append(
                _refused(image.id, image.source, Reason.CHANGED, "the file was changed or removed meanwhile")
            )
            continue
        rows.append(
            {
                "id": image.id,
                "image": data,
                "width": image.width,
                "height": image.height,
                "source": image.source,
                "label": None if image.label is None else labels[image.label],
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def _read(path: bytes, limits: ImageLimits) -> bytes:
    """A whole file; never more than the limit, however large it is or grows."""
    file_path = Path(os.fsdecode(path))
    with file_path.open("rb") as file:
        data = file.read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        raise too_many_bytes(file_path.stat().st_size, limits)
    return data


def _refused(name: str | None, source: str, reason: Reason, detail: str) -> QuarantinedFile:
    return QuarantinedFile(id=name, source=source, reason=reason, detail=detail)
