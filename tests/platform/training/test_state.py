"""Checkpoints of a real engine: any number of workers reads what any other wrote, and goes on from there."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from support.worlds import (
    ORDER,
    Trace,
    encoded_images,
    new_networks,
    note_state,
    run_world,
    slot_digests,
    step_input,
    tiny_recipe,
)

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.verify import newest_good
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import IncompatibleCheckpointError
from heliostat.objectives.step import TrainingStep
from heliostat.storage import open_store
from heliostat.training.collective import first_does
from heliostat.training.feed import slot_batch
from heliostat.training.ledger import EMPTY, SampleLedger, next_digest, slot_digest
from heliostat.training.state import check_fits, load_state, save_state
from heliostat.training.zero import ZeroEngine

CPU = torch.device("cpu")


def attempt(
    rank: int, world_size: int, recipe: PretrainRecipe, folder: str, until: int, bad_steps: tuple[int, ...] = ()
) -> Trace:
    """One attempt as the product makes it, without Ray: restore the newest checkpoint, train to ``until``, commit.

    At a bad step the first slot's first pixel is no number.
    """
    store = open_store(folder)
    log = CommitLog(store)
    lease = first_does(lambda: log.acquire_lease(f"test:{world_size}"))
    student, teacher = new_networks(recipe)
    engine = ZeroEngine(student, recipe.training, SlotPlan(recipe.training.slots, world_size), CPU)
    choice = first_does(lambda: newest_good(store, log.read()))
    start, digest = 0, EMPTY
    training = TrainingStep(recipe, engine, teacher)
    if choice is not None:
        load_state(store, choice.manifest, training)
        start, digest = choice.manifest.step, bytes.fromhex(choice.manifest.digest_of_ids)
    ledger = SampleLedger(training.plan, digest)
    trace = Trace()
    for step in range(start, until):
        prepared = step_input(recipe, training.plan, rank, step)
        trace.slots.update(slot_digests(prepared, training.plan, rank))
        slots = [slot_batch(slot, CPU) for slot in prepared.slots]
        if step in bad_steps and rank == 0:
            slots[0].global_crops[0, 0, 0, 0] = float("nan")
        trace.terms.append(training.run(step, slots).terms)
        ledger.consumed(prepared)
    save_state(store, log, lease, until, ledger.exchange(), training)
    note_state(trace, training, engine)
    return trace


def newest(folder: Path) -> CheckpointManifest:
    store = open_store(str(folder))
    choice = newest_good(store, CommitLog(store).read())
    assert choice is not None
    return choice.manifest


def every_tensor(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The whole state of the newest checkpoint, by ``kind|parameter``."""
    manifest = newest(folder)
    assert manifest.step == step
    reader = CheckpointReader(open_store(str(folder)), manifest)
    return {name: reader.read_full(*name.split("|")) for name in manifest.tensors}


def test_state__is_the_same_to_the_bit_after_any_walk_through_worker_counts(tmp_path: Path) -> None:
    """Of a recipe that has every kind of state, and after a last step that was left out."""
    gram = {"weight": 2.0, "from_step": 1, "refresh_every_steps": 10}
    recipe = tiny_recipe({"centring": "softmax", "ibot_head": "shared", "gram": gram})
    ended = run_world(1, attempt, recipe, str(tmp_path), 4, (3,))[0]
    before = every_tensor(tmp_path, 4)
    kinds = ("master", "exp_avg", "exp_avg_sq", "teacher", "gram_teacher", "centre")
    for kind in kinds:
        assert any(tensor.any() for name, tensor in before.items() if name.startswith(f"{kind}|")), kind
    assert {name.split("|")[0] for name in before} == set(kinds)
    name = "backbone.blocks.0.mlp.fc1.weight"
    anchor = before[f"gram_teacher|{name.removeprefix('backbone.')}"]
    assert not torch.equal(anchor, before[f"teacher|{name}"])  # it is the teacher of an earlier step
    assert all(torch.equal(tensor.flatten(), before[name]) for name, tensor in ended.teacher.items())
    for world_size, stage in ((2, 3), (3, 1), (4, 3), (2, 0), (1, 2)):
        staged = tiny_recipe({"centring": "softmax", "ibot_head": "shared", "gram": gram}, zero_stage=stage)
        resumed = run_world(world_size, attempt, staged, str(tmp_path), 4)[0]  # restores, trains no step, commits
        after = every_tensor(tmp_path, 4)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(torch.equal(tensor, ended.teacher[name]) for name, tensor in resumed.teacher.items())
        assert newest(tmp_path).counters == {
            "optimizer_steps": 3,
            "skips_in_a_row": 1,
            "loss_scale": 1.0,
            "loss_scale_steps": 0,
        }
    uninterrupted = run_world(1, attempt, recipe, str(tmp_path / "whole"), 6, (3,))[0]
    went_on = run_world(1, attempt, recipe, str(tmp_path), 6)[0]  # two more steps at the end of the walk
    assert all(torch.equal(went_on.student[name], tensor) for name, tensor in uninterrupted.student.items())
    assert all(torch.equal(went_on.teacher[name], tensor) for name, tensor in uninterrupted.teacher.items())


def test_resume__at_another_worker_count_continues_the_curve(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    whole = run_world(2, attempt, recipe, str(tmp_path / "whole"), 6)[0]
    parts = [
        run_world(size, attempt, recipe, str(tmp_path / "parts"), until)[0] for size, until in ((2, 2), (3, 4), (1, 6))
    ]
    terms = [terms for part in parts for terms in part.terms]
    assert len(terms) == len(whole.terms) == 6
    for mine, expected in zip(terms, whole.terms, strict=True):
        assert mine == pytest.approx(expected, rel=1e-5)
    for name, expected_tensor in whole.teacher.items():
        mine_tensor = parts[-1].teacher[name]
        if name.endswith("qkv.bias"):  # its key third has no gradient but noise; see test_zero.py
            mine_tensor, expected_tensor = (torch.cat([t[:32], t[64:]]) for t in (mine_tensor, expected_tensor))
        assert (mine_tensor - expected_tensor).norm() <= 1e-5 * expected_tensor.norm(), name


def test_resume__at_the_same_worker_count_is_equal_to_the_bit(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    whole = run_world(2, attempt, recipe, str(tmp_path / "whole"), 4)[0]
    run_world(2, attempt, recipe, str(tmp_path / "parts"), 2)
    resumed = run_world(2, attempt, recipe, str(tmp_path / "parts"), 4)[0]
    assert all(torch.equal(resumed.student[name], tensor) for name, tensor in whole.student.items())
    assert all(torch.equal(resumed.teacher[name], tensor) for name, tensor in whole.teacher.items())


def test_digest__of_consumed_ids_is_what_a_replay_of_the_order_gives(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    for world_size, until in ((3, 2), (1, 3), (2, 5)):
        run_world(world_size, attempt, recipe, str(tmp_path), until)
    ids = [hashlib.sha256(data).hexdigest() for data in encoded_images()]
    digest = EMPTY
    for step in range(5):
        rows = ORDER.step(step, recipe.training.global_batch).reshape(recipe.training.slots, -1)
        digest = next_digest(digest, (slot_digest(ids[row] for row in slot) for slot in rows))
    assert newest(tmp_path).digest_of_ids == digest.hex()


def test_load_state__another_model_is_refused_by_name_on_all_workers(tmp_path: Path) -> None:
    run_world(1, attempt, tiny_recipe(), str(tmp_path), 1)
    other = tiny_recipe().model_dump()
    other["objective"]["prototypes"] = 64
    with pytest.raises(Exception, match=r"HS-CKPT-002.*last_layer"):
        run_world(2, attempt, PretrainRecipe.model_validate(other), str(tmp_path), 2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"master|a": 3, "teacher|b": 4, "centre|dino": 5},
            "has 5 elements of centre|dino, the recipe's model has none",
        ),
        ({"master|a": 3}, "has no elements of teacher|b, the recipe's model has 4"),
        ({"master|a": 2, "teacher|b": 4}, "has 2 elements of master|a, the recipe's model has 3"),
    ],
)
def test_check_fits__names_the_first_tensor_that_differs(found: dict[str, int], message: str) -> None:
    expected = {"master|a": 3, "teacher|b": 4}
    manifest = CheckpointManifest(
        step=7, attempt=2, world_size=1, shards=(), tensors=expected, counters={}, digest_of_ids=""
    )
    check_fits(manifest, expected)
    with pytest.raises(IncompatibleCheckpointError) as raised:
        check_fits(manifest.model_copy(update={"tensors": found}), expected)
    assert message in str(raised.value)
    assert manifest.folder in str(raised.value)


def test_uncommitted_checkpoint__is_never_chosen(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run_world(1, attempt, recipe, str(tmp_path), 1)
    run_world(1, attempt, recipe, str(tmp_path), 2)
    entry = max((tmp_path / "commits").iterdir())
    assert json.loads(entry.read_text())["type"] == "checkpoint"
    entry.unlink()  # files of step 2 are all there, its entry in the log is not
    assert newest(tmp_path).step == 1
