"""The training state as a checkpoint: which worker writes which slices, and how any number of workers reads them back.

Kinds: ``master`` (the student's fp32 parameters), ``exp_avg`` and ``exp_avg_sq`` (Adam's moments), and what all workers
hold whole: ``teacher``, ``gram_teacher``, ``centre``. What depends on the step alone (schedules, data position, random
streams) is not state: the step is.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from heliostat.checkpoint.format import CheckpointManifest, StateSlice, checkpoint_folder, tensor_name
from heliostat.checkpoint.log import CommitLog, Lease
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.writer import commit, write_shard
from heliostat.errors import IncompatibleCheckpointError
from heliostat.objectives.step import TrainingStep
from heliostat.storage import Store
from heliostat.training.collective import all_do, first_does
from heliostat.training.zero import MASTER, MOMENTS, ZeroEngine

OPTIMIZER_STEPS = "optimizer_steps"
SKIPS_IN_A_ROW = "skips_in_a_row"

Replicated = Mapping[str, Mapping[str, Tensor]]
"""State that every worker holds whole, by kind and name."""


def tensor_sizes(training: TrainingStep) -> dict[str, int]:
    """Every tensor of the training state (``kind|name``) and its number of elements."""
    tensors: dict[str, Mapping[str, Tensor]] = {
        kind: dict(training.student.named_parameters()) for kind in (MASTER, *MOMENTS)
    }
    tensors |= training.replicated_state()
    return {tensor_name(kind, name): each.numel() for kind, group in tensors.items() for name, each in group.items()}


def replicated_slices(state: Replicated, rank: int, world_size: int) -> Iterator[StateSlice]:
    """One worker's share of what all workers hold whole: an equal part of each tensor."""
    for kind, tensors in state.items():
        for name, tensor in tensors.items():
            start, stop = (tensor.numel() * part // world_size for part in (rank, rank + 1))
            if stop > start:
                yield StateSlice(kind, name, start, tensor.view(-1)[start:stop])


def save_state(
    store: Store,
    log: CommitLog,
    lease: Lease,
    step: int,
    digest: bytes,
    engine: ZeroEngine,
    training: TrainingStep,
) -> CheckpointManifest:
    """Write and commit the state after ``step`` steps; all workers call it, all return or raise.

    Raises:
        FencedError: a newer attempt holds the lease.
        StorageError: the store failed for longer than its retries last.
    """
    folder = checkpoint_folder(step, lease.attempt)

    def write() -> object:
        shares = replicated_slices(training.replicated_state(), engine.rank, engine.world_size)
        slices = [*engine.state_slices(), *shares]
        return write_shard(store, folder, engine.rank, slices)

    shards = all_do(write)

    def publish() -> CheckpointManifest:
        manifest = CheckpointManifest(
            step=step,
            attempt=lease.attempt,
            world_size=engine.world_size,
            shards=tuple(shards),  # type: ignore[arg-type]
            tensors=tensor_sizes(training),
            counters={OPTIMIZER_STEPS: engine.optimizer_steps, SKIPS_IN_A_ROW: training.skips_in_a_row},
            digest_of_ids=digest.hex(),
        )
        commit(store, log, lease, manifest)
        return manifest

    return first_does(publish)


def load_state(store: Store, manifest: CheckpointManifest, engine: ZeroEngine, training: TrainingStep) -> None:
    """Make engine and step what they were; every worker reads the byte ranges that it holds now, and no others.

    Raises:
        IncompatibleCheckpointError: the checkpoint is of another model.
        CorruptCheckpointError: bytes are not those that were committed.
    """

    def read() -> None:
        check_fits(manifest, tensor_sizes(training))
        reader = CheckpointReader(store, manifest)
        engine.prepare_restore(int(manifest.counters[OPTIMIZER_STEPS]))
        for part in engine.state_slices():
            part.values.copy_(reader.read(part.kind, part.parameter, part.offset, part.offset + part.values.numel()))
        for kind, tensors in training.replicated_state().items():
            for name, tensor in tensors.items():
                tensor.copy_(reader.read_full(kind, name).view_as(tensor))

    all_do(read)
    engine.finish_restore()
    training.skips_in_a_row = int(manifest.counters.get(SKIPS_IN_A_ROW, 0))


def check_fits(manifest: CheckpointManifest, expected: Mapping[str, int]) -> None:
    """Refuse a checkpoint of another model, naming the first tensor that differs.

    Args:
        manifest: of the checkpoint.
        expected: elements of every tensor (``kind|name``) that the recipe's training state has.

    Raises:
        IncompatibleCheckpointError: a tensor is missing, too many, or of another size.
    """
    found = manifest.tensors
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise IncompatibleCheckpointError(
                f"checkpoint {manifest.folder} has {found.get(name, 'no')} elements of {name}, the recipe's model has "
                f"{expected.get(name, 'none')}",
                "Use the recipe that the checkpoint was trained with",
            )
