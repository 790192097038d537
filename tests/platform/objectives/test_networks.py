from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.slots import masks_of
from support.worlds import tiny_recipe
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.heads import LinearPrototypes
from heliostat.objectives.cross_entropy import Layer, Targets
from heliostat.objectives.networks import (
    Network,
    SlotBatch,
    SlotTargets,
    mask_weights,
)
from heliostat.objectives.teacher import update_teacher
from heliostat.objectives.teacher_view import Vectors

RECIPE = tiny_recipe()
IMAGES, LOCAL = 3, RECIPE.augmentation.local_count
PATCHES = 16


def network(seed: int = 0, recipe: PretrainRecipe = RECIPE) -> Network:
    """Larger weights than a new network has, so that every part of it shows in the losses."""
    made = Network(recipe)
    made.init_weights(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def slot(images: int = IMAGES) -> SlotBatch:
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor([0.5, 0, 0.3, 0, 0, 0.2, 0.4, 0.2])[: 2 * images, None]
    masks = torch.rand(2 * images, PATCHES, generator=generator) < shares
    # Each crop attends at least once: the class tokens of those that never do are all alike.
    more = list(range(2 * IMAGES, 2 * images))
    first = [torch.tensor([0, 3, 5, *more]), torch.tensor([1, 2, 4, 5])]
    second = [torch.tensor([4, 2, 1, 3]), torch.tensor([0, 3, *more])]
    return SlotBatch(
        global_crops=torch.randn(2 * images, 3, 16, 16, generator=generator),
        local_crops=torch.randn(LOCAL * images, 3, 8, 8, generator=generator),
        masks=masks,
        drops=[(first, second), (second, first)],
    )


def random_targets(batch: SlotBatch, gram: Tensor | None = None) -> SlotTargets:
    generator = torch.Generator().manual_seed(2)
    objective = RECIPE.objective

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def drawn(views: int, items: int) -> Targets:
        layer = LinearPrototypes(objective.head_bottleneck, objective.prototypes).requires_grad_(False)
        layer.weight.copy_(random(objective.prototypes, objective.head_bottleneck))
        z = random(views, items, objective.head_bottleneck)
        return Targets(z, Layer.of(layer, z.dtype), random(objective.prototypes), 2.0)

    return SlotTargets(
        cls=drawn(2, len(batch.global_crops) // 2), patches=drawn(1, int(masks_of(batch).sum())), gram=gram
    )


def distributions(targets: Targets) -> Tensor:
    """What targets stand for, (views * items, K)."""
    logits = targets.z_UIZ.flatten(0, 1) @ targets.layer.rows_KZ.T
    return torch.softmax(logits / targets.temperature + targets.offset_K, -1)


def bottlenecks(net: Network, batch: SlotBatch) -> Vectors:
    found = net.view(batch).bottlenecks
    assert found is not None
    return found


def test_network__losses_equal_loops_over_crops() -> None:
    net, batch = network(), slot()
    given_targets = random_targets(batch)
    found = net(batch, given_targets)
    (whole,) = net.backbone([batch.global_crops], [masks_of(batch)], [([a[0]], [b[0]]) for a, b in batch.drops or []])
    (local,) = net.backbone([batch.local_crops], None, [([a[1]], [b[1]]) for a, b in batch.drops or []])

    def entropy(p: Tensor, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[None] / RECIPE.objective.student_temperature, p[None])

    assert given_targets.cls is not None
    assert given_targets.patches is not None
    cls_p, masked_p = distributions(given_targets.cls), distributions(given_targets.patches)
    of_global: list[Tensor] = []
    of_local: list[Tensor] = []
    for image in range(IMAGES):
        for mine in range(2):
            p = cls_p[mine * IMAGES + image]
            of_global.append(entropy(p, net.dino_head(whole.cls_BD)[(1 - mine) * IMAGES + image]))
            of_local += [entropy(p, net.dino_head(local.cls_BD)[crop * IMAGES + image]) for crop in range(LOCAL)]
    torch.testing.assert_close(found["dino"], torch.stack(of_global + of_local).mean())
    count = len(of_global) + len(of_local)
    torch.testing.assert_close(found["dino_global"], torch.stack(of_global).sum() / count)
    torch.testing.assert_close(found["dino_local"], torch.stack(of_local).sum() / count)
    assert tuple(found) == net.terms
    assert found["gram"].item() == 0

    rows = iter(masked_p)
    per_crop: list[Tensor] = []
    for crop in range(2 * IMAGES):
        tokens = masks_of(batch)[crop].nonzero().flatten().tolist()
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


def with_model(**model: Any) -> PretrainRecipe:
    changed = ModelConfig.model_validate({**RECIPE.model.model_dump(), **model})
    return RECIPE.model_copy(update={"model": changed})


VARIANTS = {
    "plain": RECIPE,
    "shared head": tiny_recipe({"ibot_head": "shared"}),
    "linear prototypes": tiny_recipe({"prototype_layer": "linear"}),
    "koleo in groups": tiny_recipe({"koleo_group": 2}),
    "dinov3's backbone": with_model(ffn="swiglu", registers=2, position="rope", untied_norms="both"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_network__every_parameter_learns(variant: str) -> None:
    net, batch = network(recipe=VARIANTS[variant]), slot(images=4)
    net(batch, random_targets(batch))["loss"].backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_network__a_shared_head_serves_both_losses() -> None:
    shared, separate, batch = network(recipe=VARIANTS["shared head"]), network(), slot()
    assert shared.sub_modules == ("backbone", "dino_head")
    assert shared.patch_head is shared.dino_head
    separate.backbone.load_state_dict(shared.backbone.state_dict())
    for head in (separate.dino_head, separate.ibot_head):
        head.load_state_dict(shared.dino_head.state_dict())
    targets = random_targets(batch)
    mine, expected = shared(batch, targets), separate(batch, targets)
    for term in shared.terms:
        torch.testing.assert_close(mine[term], expected[term])
    torch.testing.assert_close(bottlenecks(shared, batch).patches[0], bottlenecks(separate, batch).patches[0])


def test_network__a_gram_anchor_adds_its_loss_and_changes_no_other() -> None:
    batch = slot()
    net = network(recipe=tiny_recipe({"gram": {"weight": 2.5}}))
    anchor = torch.randn(2 * IMAGES, PATCHES, 32, generator=torch.Generator().manual_seed(3))
    without, found = net(batch, random_targets(batch)), net(batch, random_targets(batch, anchor))
    for term in set(net.terms) - {"loss", "gram"}:
        torch.testing.assert_close(found[term], without[term])
    (whole,) = net.backbone([batch.global_crops], [masks_of(batch)], [([a[0]], [b[0]]) for a, b in batch.drops or []])
    mine, theirs = (F.normalize(x, dim=-1) for x in (whole.patches_BND, anchor))
    expected = (mine @ mine.mT - theirs @ theirs.mT).square().mean()
    torch.testing.assert_close(found["gram"], expected)
    torch.testing.assert_close(found["loss"], without["loss"] + 2.5 * expected)


def test_network__a_slot_without_any_mask_has_no_patch_loss() -> None:
    net, batch = network(), slot()
    bare = SlotBatch(batch.global_crops, batch.local_crops, torch.zeros_like(masks_of(batch)), None)
    losses = net(bare, random_targets(bare))
    assert losses["ibot"].item() == 0
    losses["loss"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())


def test_view__is_of_unmasked_crops_without_drops() -> None:
    net, batch = network(), slot()
    view = bottlenecks(net, batch)
    (tokens,) = net.backbone([batch.global_crops])
    expected_cls = F.normalize(net.dino_head.mlp(tokens.cls_BD), dim=-1).detach()
    torch.testing.assert_close(view.cls.flatten(0, 1), expected_cls)
    places = masks_of(batch).nonzero().tolist()
    assert len(view.patches[0]) == len(places)
    for row, (crop, patch) in zip(view.patches[0], places, strict=True):
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
    assert {key.split(".")[0] for key in first} == {"backbone", "dino_head", "ibot_head"}


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
