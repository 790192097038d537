"""A finished run against one plain process that reads the dataset itself."""

import pytest
import torch
from support.worlds import CPU_DEVICE, new_networks, prepare_step

from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.verify import newest_good
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.manifest import load_manifest
from heliostat.data.samples import Samples, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.storage import Store
from heliostat.storage.layout import run_store
from heliostat.training.feed import slot_batch
from heliostat.training.inputs import sample_source
from heliostat.training.ledger import EMPTY, next_digest, planned_digest, slot_digest
from heliostat_jobs.runs import load_run


def train_plainly(
    root: Store, recipe: PretrainRecipe, begun: tuple[Network, Network] | None = None
) -> tuple[dict[str, torch.Tensor], list[float], str]:
    """Teacher, losses and digest of ids of the same run in one process: no Ray, no DeepSpeed, no checkpoint.

    Args:
        root: Of its dataset.
        recipe: Of the run.
        begun: Student and teacher at the first step; None draws them.
    """
    manifests = {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares}
    source = sample_source(recipe, root, manifests)
    plan = SlotPlan(recipe.training.slots, 1)
    share = WorkerShare(plan, 0, recipe.training.slot_batch)
    student, teacher = begun or new_networks(recipe)
    training = TrainingStep(recipe, PlainEngine(student, recipe.training), teacher)
    losses, digest = [], EMPTY
    for step in range(recipe.training.steps):
        positions = share.positions(step)
        table = source.read(positions)
        samples = Samples(positions, table["id"].to_pylist(), table["image"].to_pylist())
        prepared = prepare_step(recipe, plan, 0, step, samples)
        losses.append(training.run(step, [slot_batch(slot, CPU_DEVICE) for slot in prepared.slots]).terms["loss"])
        digest = next_digest(digest, (slot_digest(slot.ids) for slot in prepared.slots))
    return dict(teacher.named_parameters()), losses, digest.hex()


def newest_state(run: Store) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of a run's newest checkpoint, flat, by kind and name."""
    choice = newest_good(run, CommitLog(run).read(), verify_bytes=True)
    assert choice is not None
    reader = CheckpointReader(run, choice.manifest)
    names = [name.split("|", 1) for name in choice.manifest.tensors]
    return {(kind, name): reader.read_full(kind, name) for kind, name in names}


def assert_run_equals_plain_training(root: Store, name: str) -> None:
    """Final teacher, loss curve and ledger of a finished run."""
    recipe, run = load_run(root, name), run_store(root, name)
    assert isinstance(recipe, PretrainRecipe)
    teacher, losses, digest = train_plainly(root, recipe)
    choice = newest_good(run, CommitLog(run).read(), verify_bytes=True)
    assert choice is not None
    assert choice.manifest.step == recipe.training.steps
    assert choice.manifest.digest_of_ids == digest
    manifests = {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares}
    assert planned_digest(sample_source(recipe, root, manifests), recipe.training) == digest
    curve = merged_curve(read_metrics(run))
    assert [line.step for line in curve] == list(range(recipe.training.steps))
    assert [line.values["loss"] for line in curve] == pytest.approx(losses, rel=1e-5)
    assert abs(losses[-1] - losses[0]) > 0.01 * losses[0]
    reader = CheckpointReader(run, choice.manifest)
    for parameter, expected in teacher.items():
        mine, reference = reader.read_full("teacher", parameter), expected.detach().flatten()
        if parameter.endswith("qkv.bias"):  # the key third has no gradient but rounding noise; see test_zero.py
            width = recipe.model.embed_dim
            mine, reference = (torch.cat([t[:width], t[2 * width :]]) for t in (mine, reference))
        assert (mine - reference).norm() <= 1e-5 * reference.norm(), parameter
