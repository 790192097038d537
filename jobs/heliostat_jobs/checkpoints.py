"""What people want to know of a run's checkpoints. Needs no torch: any client may look."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, live_checkpoints
from heliostat.checkpoint.requests import answer, answered
from heliostat.checkpoint.verify import check_shards, load_manifest
from heliostat.errors import CorruptCheckpointError, NoCheckpointError, NotTrainingError
from heliostat.observe.redaction import redact
from heliostat.storage import Store

_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Listed:
    """One committed checkpoint, as far as log and manifest tell."""

    step: int
    attempt: int
    written_at: str
    """UTC, by the clock of who wrote it."""
    metrics: dict[str, float]
    size_bytes: int | None
    """None where the manifest is not what was committed."""
    workers: int | None


@dataclass(frozen=True, slots=True)
class KindOfState:
    """The tensors of one kind in a checkpoint."""

    kind: str
    tensors: int
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Described:
    """What is in a checkpoint."""

    step: int
    attempt: int
    written_at: str
    folder: str
    workers: int
    """That wrote it."""
    size_bytes: int
    shards: int
    kinds: tuple[KindOfState, ...]
    counters: dict[str, int | float | str]
    digest_of_ids: str
    metrics: dict[str, float]
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What hashing every byte of a checkpoint found."""

    step: int
    attempt: int
    size_bytes: int
    """Hashed."""
    duration_s: float
    fault: str | None
    """The first one; None if every byte is as it was committed."""


def list_checkpoints(run: Store) -> list[Listed]:
    """All that are committed and not given up, oldest first."""
    listed = []
    for entry in live_checkpoints(CommitLog(run).read()):
        try:
            manifest: CheckpointManifest | None = load_manifest(run, entry)
        except CorruptCheckpointError:
            manifest = None
        size_bytes, workers = (manifest.size_bytes, manifest.world_size) if manifest else (None, None)
        listed.append(Listed(entry.step, entry.attempt, entry.written_at, entry.metrics, size_bytes, workers))
    return listed


def chosen(run: Store, step: int | None) -> CheckpointEntry:
    """The newest committed checkpoint, or the newest of this step.

    Raises:
        NoCheckpointError: there is none.
    """
    entries = live_checkpoints(CommitLog(run).read())
    matching = [entry for entry in entries if step in (None, entry.step)]
    if matching:
        return matching[-1]
    if not entries:
        raise NoCheckpointError(f"the run {run.url} has no checkpoint yet", "Wait for the first one")
    steps = ", ".join(str(entry.step) for entry in entries)
    raise NoCheckpointError(f"the run {run.url} has no checkpoint of step {step}", f"There are checkpoints of {steps}")


def describe(run: Store, entry: CheckpointEntry) -> Described:
    """What is in a checkpoint; reads its manifest only.

    Raises:
        CorruptCheckpointError: the manifest is missing or not what was committed.
    """
    manifest = load_manifest(run, entry)
    size_bytes: defaultdict[str, int] = defaultdict(int)
    for shard in manifest.shards:
        ends = [*(each.start_byte for each in shard.slices[1:]), shard.size_bytes]
        for each, end in zip(shard.slices, ends, strict=True):
            size_bytes[each.tensor.partition("|")[0]] += end - each.start_byte
    elements: defaultdict[str, list[int]] = defaultdict(list)
    for name, numel in manifest.tensors.items():
        elements[name.partition("|")[0]].append(numel)
    return Described(
        step=entry.step,
        attempt=entry.attempt,
        written_at=entry.written_at,
        folder=manifest.folder,
        workers=manifest.world_size,
        size_bytes=manifest.size_bytes,
        shards=len(manifest.shards),
        kinds=tuple(
            KindOfState(kind, len(sizes), sum(sizes), size_bytes[kind]) for kind, sizes in sorted(elements.items())
        ),
        counters=manifest.counters,
        digest_of_ids=manifest.digest_of_ids,
        metrics=entry.metrics,
        manifest_sha256=entry.manifest_sha256,
    )


def verify(run: Store, entries: Sequence[CheckpointEntry], hashed: Callable[[int], None]) -> list[Verified]:
    """Hash every byte of checkpoints.

    Args:
        run: The run's store.
        entries: Of its log.
        hashed: Told how many bytes were hashed, by several threads.
    """
    return [_verify_one(run, entry, hashed) for entry in entries]


def _verify_one(run: Store, entry: CheckpointEntry, hashed: Callable[[int], None]) -> Verified:
    begun_s = time.monotonic()
    amounts: list[int] = []

    def note(size_bytes: int) -> None:
        amounts.append(size_bytes)
        hashed(size_bytes)

    fault = None
    try:
        check_shards(run, load_manifest(run, entry), verify_bytes=True, hashed=note)
    except CorruptCheckpointError as error:
        fault = redact(error.fact)
    return Verified(entry.step, entry.attempt, sum(amounts), time.monotonic() - begun_s, fault)


def wait_for_answer(run: Store, key: str, timeout_s: float) -> CheckpointEntry:
    """Wait until a commit has answered a request.

    Raises:
        NotTrainingError: the run finished without, or nobody answered in time; the request is taken back.
    """
    deadline_s = time.monotonic() + timeout_s
    while (entry := answered(run, key)) is None:
        if time.monotonic() > deadline_s:
            answer(run, frozenset([key]))
            raise NotTrainingError(
                f"no worker of the run {run.url} made a checkpoint within {timeout_s:g} s; the request is taken back",
                "See whether it trains; if its steps or its storage are slow, give a longer --timeout-s",
            )
        time.sleep(_LOOK_S)
    return entry
