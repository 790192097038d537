"""The training state as a checkpoint: which worker writes which slices, and how any number of workers reads them back.

Kinds: ``master`` (the student's fp32 parameters), ``exp_avg`` and ``exp_avg_sq`` (Adam's moments), ``teacher``,
``gram_teacher``, ``centre``. Which of them workers share out and which every worker holds whole is the engine's matter;
it is not to be seen in a checkpoint. What depends on the step alone (schedules, data position, random streams) is not
state: the step is.
"""

from collections.abc import Iterator, Mapping

from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import CheckpointManifest, StateSlice
from heliostat.checkpoint.log import CommitLog, Lease
from heliostat.checkpoint.places import ShardSource
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.errors import IncompatibleCheckpointError
from heliostat.objectives.step_state import StepState
from heliostat.storage import Store
from heliostat.training.collective import all_do, first_does


def owned_slices(training: StepState) -> Iterator[StateSlice]:
    """What a worker writes: its shards, and an equal part of each tensor that all workers hold whole."""
    rank, world_size = training.rank, training.plan.world_size
    yield from training.state_slices()
    for kind, tensors in training.replicated_state().items():
        for name, tensor in tensors.items():
            start, stop = (tensor.numel() * part // world_size for part in (rank, rank + 1))
            if stop > start:
                yield StateSlice(kind, name, start, tensor.view(-1)[start:stop])


def held_slices(training: StepState) -> Iterator[StateSlice]:
    """What a worker reads back: its shards, and all that every worker holds whole."""
    yield from training.state_slices()
    for kind, tensors in training.replicated_state().items():
        for name, tensor in tensors.items():
            yield StateSlice(kind, name, 0, tensor.view(-1))


def draft_of(lease: Lease, step: int, digest: bytes, training: StepState) -> Draft:
    """What all workers know of the checkpoint after ``step`` steps."""
    return Draft(
        step=step,
        attempt=lease.attempt,
        world_size=training.plan.world_size,
        tensors=training.tensor_sizes(),
        counters=dict(training.counters()),
        digest_of_ids=digest.hex(),
    )


def save_state(
    store: Store,
    log: CommitLog,
    lease: Lease,
    step: int,
    digest: bytes,
    training: StepState,
) -> CheckpointManifest:
    """Write and commit the state after ``step`` steps, and wait for it; all workers call it, all return or raise.

    Of the same parts as ``Saver``, which a run uses: without a copy of the state, and without a thread.

    Raises:
        FencedError: a newer attempt holds the lease.
        StorageError: the store failed for longer than its retries last.
    """
    draft = draft_of(lease, step, digest, training)
    all_do(lambda: write_part(store, draft, training.rank, list(owned_slices(training))))
    return first_does(lambda: assemble(store, log, lease, draft))


def load_state(store: ShardSource, manifest: CheckpointManifest, training: StepState) -> None:
    """Make students and teachers what they were; every worker reads the byte ranges that it holds now, and no others.

    Args:
        store: Where the shards lie.
        manifest: Of the checkpoint.
        training: To be restored.

    Raises:
        IncompatibleCheckpointError: the checkpoint is of another model.
        CorruptCheckpointError: bytes are not those that were committed.
    """

    def read() -> None:
        check_fits(manifest, training.tensor_sizes())
        reader = CheckpointReader(store, manifest)
        training.prepare_restore(manifest.counters)
        for part in held_slices(training):
            part.values.copy_(reader.read(part.kind, part.parameter, part.offset, part.offset + part.values.numel()))

    all_do(read)
    training.finish_restore(manifest.counters)


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
