import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.worlds import tiny_recipe
from torch import Tensor

from heliostat.objectives.networks import (
    SUB_MODULES,
    Network,
    SlotBatch,
    SlotTargets,
    mask_weights,
    update_teacher,
)

RECIPE = tiny_recipe()
IMAGES, LOCAL = 3, RECIPE.augmentation.local_count
PATCHES = 16


def network(seed: int = 0) -> Network:
    """Larger weights than a new network has, so that every part of it shows in the losses."""
    made = Network(RECIPE)
    made.init_weights(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def slot() -> SlotBatch:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2 * IMAGES, PATCHES, generator=generator) < torch.tensor([0.5, 0, 0.3, 0, 0, 0.2])[:, None]
    # Each crop attends at least once: the class tokens of those that never do are all alike.
    first = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 4, 5])]
    second = [torch.tensor([4, 2, 1, 3]), torch.tensor([0, 3])]
    return SlotBatch(
        global_crops=torch.randn(2 * IMAGES, 3, 16, 16, generator=generator),
        local_crops=torch.randn(LOCAL * IMAGES, 3, 8, 8, generator=generator),
        masks=masks,
        drops=[(first, second), (second, first)],
    )


def random_targets(batch: SlotBatch) -> SlotTargets:
    generator = torch.Generator().manual_seed(2)
    prototypes = RECIPE.objective.prototypes
    return SlotTargets(
        cls=torch.softmax(torch.randn(2 * IMAGES, prototypes, generator=generator), -1),
        masked=torch.softmax(torch.randn(int(batch.masks.sum()), prototypes, generator=generator), -1),
    )


def test_network__losses_equal_loops_over_crops() -> None:
    net, batch = network(), slot()
    given_targets = random_targets(batch)
    found = net(batch, given_targets)
    (whole,) = net.backbone([batch.global_crops], [batch.masks], [([a[0]], [b[0]]) for a, b in batch.drops or []])
    (local,) = net.backbone([batch.local_crops], None, [([a[1]], [b[1]]) for a, b in batch.drops or []])

    def entropy(p: Tensor, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[None] / RECIPE.objective.student_temperature, p[None])

    pairs: list[Tensor] = []
    for image in range(IMAGES):
        for mine in range(2):
            p = given_targets.cls[mine * IMAGES + image]
            pairs.append(entropy(p, net.dino_head(whole.cls_BD)[(1 - mine) * IMAGES + image]))
            pairs += [entropy(p, net.dino_head(local.cls_BD)[crop * IMAGES + image]) for crop in range(LOCAL)]
    torch.testing.assert_close(found["dino"], torch.stack(pairs).mean())

    rows = iter(given_targets.masked)
    per_crop: list[Tensor] = []
    for crop in range(2 * IMAGES):
        tokens = batch.masks[crop].nonzero().flatten().tolist()
        losses = [entropy(next(rows), net.ibot_head(whole.patches_BND[crop, token])) for token in tokens]
        per_crop.append(torch.stack(losses).mean() if losses else torch.zeros(()))
    torch.testing.assert_close(found["ibot"], torch.stack(per_crop).mean())

    koleo = torch.zeros(())
    for crop in range(2):
        unit = F.normalize(whole.cls_BD[crop * IMAGES : (crop + 1) * IMAGES].double(), dim=-1)
        distances = (unit[:, None] - unit).norm(dim=-1) + 9 * torch.eye(IMAGES)
        koleo = koleo - distances.amin(1).log().mean()
    torch.testing.assert_close(found["koleo"].double(), koleo, atol=0, rtol=1e-4)
    torch.testing.assert_close(found["loss"], found["dino"] + found["ibot"] + 0.1 * found["koleo"])


def test_network__every_parameter_learns() -> None:
    net, batch = network(), slot()
    net(batch, random_targets(batch))["loss"].backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_network__a_slot_without_any_mask_has_no_patch_loss() -> None:
    net, batch = network(), slot()
    bare = SlotBatch(batch.global_crops, batch.local_crops, torch.zeros_like(batch.masks), None)
    losses = net(bare, SlotTargets(random_targets(batch).cls, torch.empty(0, RECIPE.objective.prototypes)))
    assert losses["ibot"].item() == 0
    losses["loss"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())


def test_view__is_of_unmasked_crops_without_drops() -> None:
    net, batch = network(), slot()
    view = net.view(batch)
    (tokens,) = net.backbone([batch.global_crops])
    torch.testing.assert_close(view.cls, F.normalize(net.dino_head.mlp(tokens.cls_BD), dim=-1))
    places = batch.masks.nonzero().tolist()
    assert len(view.masked) == len(places)
    for row, (crop, patch) in zip(view.masked, places, strict=True):
        expected = F.normalize(net.ibot_head.mlp(tokens.patches_BND[crop, patch]), dim=-1)
        torch.testing.assert_close(row, expected.detach())
    assert not view.cls.requires_grad


def test_init_weights__are_a_function_of_seed_and_sub_module() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        made = Network(RECIPE)
        made.init_weights(seed)
        return made.state_dict()

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "last_layer.weight_v"
    assert not torch.equal(first[f"dino_head.{name}"], other[f"dino_head.{name}"])
    assert not torch.equal(first[f"dino_head.{name}"], first[f"ibot_head.{name}"])
    assert {key.split(".")[0] for key in first} == set(SUB_MODULES)


@given(rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_mask_weights__are_one_over_the_crops_count(rows: list[list[bool]]) -> None:
    expected = [1 / sum(row) for row in rows for masked in row if masked]
    assert mask_weights(torch.tensor(rows)).tolist() == pytest.approx(expected)


def test_update_teacher__moves_every_parameter_towards_the_student() -> None:
    teacher, student = network(0), network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    update_teacher(teacher, student, 0.9)
    for name, value in teacher.state_dict().items():
        expected = 0.9 * before[name].double() + 0.1 * student.state_dict()[name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    frozen = {name: value.clone() for name, value in teacher.state_dict().items()}
    update_teacher(teacher, student, 1.0)
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.state_dict().items())
