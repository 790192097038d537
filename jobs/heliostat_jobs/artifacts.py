"""What jobs hand on to one another: named things in the store, each with the hash of its manifest."""

from collections.abc import Mapping

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, live_checkpoints
from heliostat.checkpoint.verify import check_shards
from heliostat.checkpoint.verify import load_manifest as load_checkpoint
from heliostat.data.manifest import load_manifest
from heliostat.errors import ArtifactChangedError, HeliostatError, NoCheckpointError
from heliostat.observe.metrics import KNN
from heliostat.storage import Store
from heliostat.storage.layout import run_store

Artifact = dict[str, str | int]
"""``kind``, ``name`` and ``manifest_sha256``; of a checkpoint its ``step`` too."""
Artifacts = dict[str, Artifact]
"""By what a stage calls them: dataset, best, last."""

CHECKPOINT, DATASET = "checkpoint", "dataset"


def dataset_artifact(name: str, manifest_sha256: str) -> Artifacts:
    """A dataset, of which a curation makes one."""
    return {"dataset": {"kind": DATASET, "name": name, "manifest_sha256": manifest_sha256}}


def checkpoint_artifacts(run: Store, name: str) -> Artifacts:
    """The newest checkpoint of a run, and the best one by its k-NN accuracy, if that was watched."""
    entries = live_checkpoints(CommitLog(run).read())
    if not entries:
        return {}
    judged = [entry for entry in entries if KNN in entry.metrics]
    best = max(judged, key=lambda entry: (entry.metrics[KNN], entry.step), default=entries[-1])
    return {"last": _checkpoint(name, entries[-1]), "best": _checkpoint(name, best)}


def checkpoint_artifact(run: Store, name: str, step: int | None) -> Artifact:
    """One checkpoint of a run.

    Args:
        run: The run's own store.
        name: Of the run.
        step: Of the checkpoint; None is the newest.

    Raises:
        NoCheckpointError: there is none of this step, or none at all.
        CorruptCheckpointError: parts of it are not there.
    """
    entries = live_checkpoints(CommitLog(run).read())
    found = [entry for entry in entries if step in (None, entry.step)]
    if not found:
        steps = ", ".join(str(entry.step) for entry in entries) or "no step"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise NoCheckpointError(f"run {name!r} has {wanted}", f"There are checkpoints of {steps}")
    check_shards(run, load_checkpoint(run, found[-1]))
    return _checkpoint(name, found[-1])


def _checkpoint(name: str, entry: CheckpointEntry) -> Artifact:
    return {"kind": CHECKPOINT, "name": name, "step": entry.step, "manifest_sha256": entry.manifest_sha256}


def check_artifact(root: Store, artifact: Artifact, pinned: Mapping[str, str] | None = None) -> None:
    """Refuse to go on with something else than was handed on.

    Args:
        root: Where it lies.
        artifact: As it was handed on.
        pinned: Hashes of manifests by dataset, of a job that has begun before; it is bound to those.

    Raises:
        ArtifactChangedError: it is not there any more, or another one.
    """
    name, wanted = str(artifact["name"]), artifact["manifest_sha256"]
    try:
        if artifact["kind"] == DATASET:
            found = pinned[name] if pinned is not None else load_manifest(root, name).sha256
        else:
            found = _checkpoint_sha256(run_store(root, name), int(artifact["step"]))
    except HeliostatError as error:
        found = f"unreadable ({error.code})"
    if found != wanted:
        step = f" of step {artifact['step']}" if "step" in artifact else ""
        raise ArtifactChangedError(
            f"the {artifact['kind']}{step} of {name} under {root.url} is {found[:16]}, not {str(wanted)[:16]} as when "
            "it was handed on",
            "Restore it, or begin again under another name: what follows from something else is another result",
        )


def _checkpoint_sha256(run: Store, step: int) -> str:
    for entry in reversed(live_checkpoints(CommitLog(run).read())):
        if entry.step == step:
            load_checkpoint(run, entry)  # raises where it is not what was committed
            return entry.manifest_sha256
    return "gone"
