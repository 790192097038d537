"""The training state as a checkpoint: which worker writes which slices, and how any number of workers reads them back.

Kinds: ``master`` (the student's fp32 parameters), ``exp_avg`` and ``exp_avg_sq`` (Adam's moments), ``teacher``. What
depends on the step alone (schedules, data position, random streams) is not state: the step is.
"""

from collections.abc import Iterator

from torch import nn

from heliostat.checkpoint.format import CheckpointManifest, StateSlice, checkpoint_folder, tensor_name
from heliostat.checkpoint.log import CommitLog, Lease
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.writer import commit, write_shard
from heliostat.errors import IncompatibleCheckpointError
from heliostat.objectives.networks import Network
from heliostat.storage import Store
from heliostat.training.collective import all_do, first_does
from heliostat.training.zero import MASTER, MOMENTS, ZeroEngine

TEACHER = "teacher"
OPTIMIZER_STEPS = "optimizer_steps"


def tensor_sizes(network: nn.Module) -> dict[str, int]:
    """Every tensor of the training state (``kind|parameter``) and its number of elements."""
    return {
        tensor_name(kind, name): parameter.numel()
        for kind in (MASTER, *MOMENTS, TEACHER)
        for name, parameter in network.named_parameters()
    }


def teacher_slices(teacher: Network, rank: int, world_size: int) -> Iterator[StateSlice]:
    """One worker's share of the teacher, which all workers hold whole: an equal part of each tensor."""
    for name, parameter in teacher.named_parameters():
        start, stop = (parameter.numel() * part // world_size for part in (rank, rank + 1))
        if stop > start:
            yield StateSlice(TEACHER, name, start, parameter.detach().view(-1)[start:stop])


def save_state(
    store: Store, log: CommitLog, lease: Lease, step: int, digest: bytes, engine: ZeroEngine, teacher: Network
) -> CheckpointManifest:
    """Write and commit the state after ``step`` steps; all workers call it, all return or raise.

    Raises:
        FencedError: a newer attempt holds the lease.
        StorageError: the store failed for longer than its retries last.
    """
    folder = checkpoint_folder(step, lease.attempt)

    def write() -> object:
        slices = [*engine.state_slices(), *teacher_slices(teacher, engine.rank, engine.world_size)]
        return write_shard(store, folder, engine.rank, slices)

    shards = all_do(write)

    def publish() -> CheckpointManifest:
        manifest = CheckpointManifest(
            step=step,
            attempt=lease.attempt,
            world_size=engine.world_size,
            shards=tuple(shards),  # type: ignore[arg-type]
            tensors=tensor_sizes(teacher),
            counters={OPTIMIZER_STEPS: engine.optimizer_steps},
            digest_of_ids=digest.hex(),
        )
        commit(store, log, lease, manifest)
        return manifest

    return first_does(publish)


def load_state(store: Store, manifest: CheckpointManifest, engine: ZeroEngine, teacher: Network) -> None:
    """Make engine and teacher what they were; every worker reads the byte ranges that it holds now, and no others.

    Raises:
        IncompatibleCheckpointError: the checkpoint is of another model.
        CorruptCheckpointError: bytes are not those that were committed.
    """

    def read() -> None:
        check_fits(manifest, teacher)
        reader = CheckpointReader(store, manifest)
        engine.prepare_restore(int(manifest.counters[OPTIMIZER_STEPS]))
        for part in engine.state_slices():
            part.values.copy_(reader.read(part.kind, part.parameter, part.offset, part.offset + part.values.numel()))
        load_teacher(reader, teacher)

    all_do(read)
    engine.finish_restore()


def load_teacher(reader: CheckpointReader, teacher: Network) -> None:
    """Read the whole teacher."""
    for name, parameter in teacher.named_parameters():
        parameter.data.copy_(reader.read_full(TEACHER, name).view_as(parameter))


def check_fits(manifest: CheckpointManifest, network: nn.Module) -> None:
    """Refuse a checkpoint of another model, naming the first tensor that differs.

    Raises:
        IncompatibleCheckpointError: a tensor is missing, too many, or of another size.
    """
    expected, found = tensor_sizes(network), manifest.tensors
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise IncompatibleCheckpointError(
                f"checkpoint {manifest.folder} has {found.get(name, 'no')} elements of {name}, the recipe's model has "
                f"{expected.get(name, 'none')}",
                "Use the recipe that the checkpoint was trained with",
            )
