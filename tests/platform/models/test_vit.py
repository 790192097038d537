from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backbones import ROTARY, small_backbone
from support.closed_form import det
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.models.block import DropPlan
from heliostat.models.positions import RopeJitter
from heliostat.models.vit import VisionTransformer
from heliostat.objectives.masking import draw_drops

DIM = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"registers": 2},
    "swiglu": {"ffn": "swiglu"},
    "rotary": ROTARY,
}
SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


def random_groups(sizes: list[tuple[int, int, int]], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Crops and masks of groups, given as (crops, rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.randn(crops, 3, 14 * rows, 14 * columns, generator=generator) for crops, rows, columns in sizes]
    masks = [torch.rand(crops, rows * columns, generator=generator) < 0.3 for crops, rows, columns in sizes]
    return groups, masks


def assert_close(mine: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)


@settings(max_examples=60)
@given(sizes=SIZES, variant=st.sampled_from(sorted(VARIANTS)), seed=st.integers(0, 100))
def test_vit__packed_groups_equal_separate_forwards(sizes: list[tuple[int, int, int]], variant: str, seed: int) -> None:
    model = small_backbone(**VARIANTS[variant])
    groups, masks = random_groups(sizes, seed)
    packed = model(groups, masks)
    for group, mask, together in zip(groups, masks, packed, strict=True):
        for crop in range(len(group)):
            (alone,) = model([group[crop : crop + 1]], [mask[crop : crop + 1]])
            assert_close(together.cls_BD[crop], alone.cls_BD[0])
            assert_close(together.registers_BRD[crop], alone.registers_BRD[0])
            assert_close(together.patches_BND[crop], alone.patches_BND[0])


def without_blocks() -> VisionTransformer:
    """Blocks add nothing: what comes out is the normalised input of the first block."""
    model = small_backbone()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data.zero_()
    return model


def test_vit__masks_replace_patches_before_positions_are_added() -> None:
    model = without_blocks()
    mask = torch.zeros(2, 25, dtype=torch.bool)
    mask[1, [3, 24]] = True
    crops = det((2, 3, 70, 70), 5)
    (tokens,) = model([crops], [mask])
    (unmasked,) = model([crops])
    assert model.pos_embed is not None
    expected = model.norm(model.mask_token + model.pos_embed[0, 1:])
    torch.testing.assert_close(tokens.patches_BND[mask], expected[[3, 24]])
    torch.testing.assert_close(tokens.patches_BND[~mask], unmasked.patches_BND[~mask])


def test_vit__what_is_below_a_mask_does_not_matter() -> None:
    model = small_backbone()
    mask = torch.zeros(1, 25, dtype=torch.bool)
    mask[0, 7] = True  # row 1, column 2
    crops = det((1, 3, 70, 70), 5)
    changed = crops.clone()
    changed[:, :, 14:28, 28:42] = 9.0
    (before,), (after,) = model([crops], [mask]), model([changed], [mask])
    assert torch.equal(before.patches_BND, after.patches_BND)
    assert not torch.equal(model([changed])[0].cls_BD, model([crops])[0].cls_BD)


# Only what is wanted


@settings(max_examples=40)
@given(
    sizes=SIZES,
    variant=st.sampled_from(sorted(VARIANTS)),
    dropped=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_vit__wanted_tokens_equal_those_of_the_whole_forward(
    sizes: list[tuple[int, int, int]], variant: str, dropped: bool, share: float, seed: int
) -> None:
    model = small_backbone(**VARIANTS[variant]).train()
    groups, masks = random_groups(sizes, seed)
    drops = draw_drops(seed, 0, 0, 2, tuple(map(len, groups)), 0.5) if dropped else None
    generator = torch.Generator().manual_seed(seed)
    wanted = [(torch.rand(mask.numel(), generator=generator) < share).nonzero().flatten() for mask in masks]
    if len(wanted) > 1:
        wanted[1] = wanted[1][:0]  # the local crops of a step
    weights = [torch.randn(mask.numel() + len(mask), DIM, generator=generator) for mask in masks]

    def gradients(outputs: list[Tensor]) -> list[Tensor | None]:
        total = sum(((weight[: len(x)] * x).sum() for weight, x in zip(weights, outputs, strict=True)), torch.zeros(()))
        return list(torch.autograd.grad(total, list(model.parameters()), allow_unused=True))

    few = [torch.cat([each.cls_BD, each.patches_MD]) for each in model(groups, masks, drops, wanted=wanted)]
    whole = [
        torch.cat([each.cls_BD, each.patches_BND.flatten(0, 1)[index]])
        for each, index in zip(model(groups, masks, drops), wanted, strict=True)
    ]
    for mine, expected in zip(few, whole, strict=True):
        assert_close(mine, expected)
    for one, other in zip(gradients(few), gradients(whole), strict=True):
        if one is None or other is None:
            assert all(each is None or not each.any() for each in (one, other))
        else:
            torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-4)


def test_vit__each_group_has_its_own_drops() -> None:
    model = small_backbone(depth=1)
    large, small = det((3, 3, 70, 70), 1), det((4, 3, 28, 28), 2)
    drops: DropPlan = [([torch.tensor([1]), torch.tensor([0, 3])], [torch.tensor([2]), torch.tensor([3, 1])])]
    together = model([large, small], drops=drops)
    for index, group in enumerate((large, small)):
        (alone,) = model([group], drops=[([drops[0][0][index]], [drops[0][1][index]])])
        torch.testing.assert_close(together[index].patches_BND, alone.patches_BND, atol=1e-5, rtol=1e-5)


# Layers in between


def images(count: int = 2) -> Tensor:
    return det((count, 3, 42, 70), 5)


@pytest.mark.parametrize("registers", [0, 3])
def test_get_intermediate_layers__are_the_outputs_of_the_blocks(registers: int) -> None:
    model = small_backbone(registers=registers, depth=3)
    raw: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: raw.append(output[0]))
    model([images()])
    assert len(raw) == 3
    outputs = list(raw)  # the next calls go through the hooks too
    layers: Sequence[Any] = model.get_intermediate_layers(images(), n=[2, 0], return_class_token=True, norm=False)
    for (patches, cls), output in zip(layers, (outputs[2], outputs[0]), strict=True):
        assert torch.equal(patches, output[:, 1 + registers :])
        assert torch.equal(cls, output[:, 0])
    normed: Sequence[Any] = model.get_intermediate_layers(images(), n=2, return_class_token=True)
    for (patches, cls), output in zip(normed, outputs[1:], strict=True):
        assert_close(patches, model.norm(output)[:, 1 + registers :])
        assert_close(cls, model.norm(output)[:, 0])


def test_get_intermediate_layers__the_last_one_is_what_forward_gives() -> None:
    model = small_backbone(**ROTARY)
    (tokens,) = model([images()])
    layers: Sequence[Any] = model.get_intermediate_layers(images(), return_class_token=True)
    ((patches, cls),) = layers
    assert_close(patches, tokens.patches_BND)
    assert_close(cls, tokens.cls_BD)
    alone: Sequence[Any] = model.get_intermediate_layers(images())
    assert torch.equal(alone[0], patches)


def test_get_intermediate_layers__maps_have_patches_at_their_places() -> None:
    model = small_backbone()
    flat: Any = model.get_intermediate_layers(images())[0]
    maps: Any = model.get_intermediate_layers(images(), reshape=True)[0]
    assert maps.shape == (2, DIM, 3, 5)
    for row in range(3):
        for column in range(5):
            assert torch.equal(maps[:, :, row, column], flat[:, row * 5 + column])


@pytest.mark.parametrize("n", [3, [2], [-1], [0, 7]])
def test_get_intermediate_layers__a_block_that_is_not_there_is_named(n: int | list[int]) -> None:
    with pytest.raises(IndexError, match="the model has blocks 0 to 1"):
        small_backbone().get_intermediate_layers(images(), n=n)


def test_vit__images_of_parts_of_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="42 x 71 pixels are not made of whole patches of 14"):
        small_backbone()([torch.zeros(1, 3, 42, 71)])


# Untied norms


@pytest.mark.parametrize(
    ("untied", "training", "expected"),
    [
        ("none", True, ("norm", "norm", "norm")),
        ("cls", True, ("cls_norm", "cls_norm", "cls_norm")),
        ("cls", False, ("cls_norm", "cls_norm", "cls_norm")),
        ("local_cls", True, ("norm", "local_cls_norm", "local_cls_norm")),
        ("local_cls", False, ("norm", "norm", "norm")),
        ("both", True, ("cls_norm", "local_cls_norm", "local_cls_norm")),
        ("both", False, ("cls_norm", "cls_norm", "cls_norm")),
    ],
)
def test_vit__class_and_register_tokens_have_their_own_norm(
    untied: str, training: bool, expected: tuple[str, ...]
) -> None:
    model = small_backbone(untied_norms=untied, registers=2).train(training)
    groups, _ = random_groups([(2, 5, 5), (3, 2, 2), (1, 3, 1)], seed=0)
    raw: list[list[Tensor]] = []
    model.blocks[-1].register_forward_hook(lambda _, __, output: raw.append(output))
    nothing = [torch.arange(0)] * 3
    whole, few = model(groups), model(groups, wanted=nothing)
    for group, name in enumerate(expected):
        norm = getattr(model, name)
        last = raw[0][group]
        assert_close(whole[group].cls_BD, norm(last[:, 0]))
        assert_close(whole[group].registers_BRD, norm(last[:, 1:3]))
        assert_close(whole[group].patches_BND, model.norm(last[:, 3:]))
        assert_close(few[group].cls_BD, norm(last[:, 0]))


# Rotary positions


def test_vit__with_rotary_positions_stores_none_and_takes_any_size() -> None:
    model = small_backbone(**ROTARY)
    assert "pos_embed" not in model.state_dict()
    for rows, columns in ((5, 5), (1, 1), (7, 2)):
        (tokens,) = model([det((2, 3, 14 * rows, 14 * columns), 5)])
        assert tokens.patches_BND.shape == (2, rows * columns, DIM)
        assert tokens.patches_BND.isfinite().all()


def test_vit__rotary_positions_tell_where_a_patch_is() -> None:
    model = small_backbone(**ROTARY)
    crops = det((1, 3, 42, 42), 5)
    swapped = crops.clone()
    swapped[..., :14, :14], swapped[..., 14:28, 28:] = crops[..., 14:28, 28:], crops[..., :14, :14]
    (one,), (other,) = model([crops]), model([swapped])
    # Attention alone would see the same set of patches.
    assert (one.cls_BD - other.cls_BD).abs().max() > 1e-4


def test_vit__jitter_counts_where_it_is_handed_in_and_nowhere_else() -> None:
    model = small_backbone(**ROTARY).train()
    groups, _ = random_groups([(2, 5, 5), (3, 2, 2)], seed=0)
    still = model(groups)
    for same in (model(groups, jitters=[None, None]), model(groups, jitters=[RopeJitter(), RopeJitter()])):
        for mine, expected in zip(same, still, strict=True):
            assert torch.equal(mine.patches_BND, expected.patches_BND)
    jittered = model(groups, jitters=[None, RopeJitter(shift_h=0.3, stretch_w=1.4, rescale=0.8)])
    assert torch.equal(jittered[0].patches_BND, still[0].patches_BND)
    assert (jittered[1].patches_BND - still[1].patches_BND).abs().max() > 1e-4
    larger = model(groups, jitters=[RopeJitter(rescale=2.0)] * 2)
    assert (larger[0].patches_BND - still[0].patches_BND).abs().max() > 1e-4


# Weights


@pytest.mark.parametrize(
    ("arch", "parameters", "entries"),
    [
        ("vit_s", 22_056_576, 175),
        ("vit_b", 86_580_480, 175),
        ("vit_l", 304_368_640, 343),
        ("vit_g", 1_136_480_768, 567),
    ],
)
def test_vit__has_the_published_sizes(arch: str, parameters: int, entries: int) -> None:
    for registers in (0, 4):
        config = ModelConfig.model_validate({"arch": arch, "registers": registers})
        with torch.device("meta"):
            model = VisionTransformer(config, grid=37)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == parameters + registers * config.embed_dim
        assert len(model.state_dict()) == entries + bool(registers)


def test_init_weights__follow_the_recipe() -> None:
    config = ModelConfig.model_validate({"arch": "custom", "embed_dim": DIM, "depth": 1, "heads": 2, "registers": 3})
    model = VisionTransformer(config, 16)
    model.init_weights(torch.Generator().manual_seed(0))
    values = dict(model.named_parameters())
    assert abs(values["pos_embed"].std().item() - 0.02) < 0.001
    assert abs(values["blocks.0.mlp.fc1.weight"].std().item() - 0.02) < 0.001
    assert 0 < values["cls_token"].abs().max() < 1e-5
    assert 0 < values["register_tokens"].abs().max() < 1e-5
    bound = (3 * 14 * 14) ** -0.5
    assert 0.95 * bound < values["patch_embed.proj.weight"].abs().max() <= bound
    assert values["blocks.0.ls1.gamma"].eq(1e-5).all()
    for name in ("mask_token", "blocks.0.attn.qkv.bias", "blocks.0.norm1.bias"):
        assert values[name].eq(0).all()
    for name in ("norm.weight", "blocks.0.norm2.weight"):
        assert values[name].eq(1).all()


def test_init_weights__are_a_function_of_the_generator() -> None:
    def drawn(seed: int) -> VisionTransformer:
        model = small_backbone()
        model.init_weights(torch.Generator().manual_seed(seed))
        return model

    states = [drawn(seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["pos_embed"], states[2]["pos_embed"])
