from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.closed_form import det, det_parameters
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.models.vit import Block, DropPlan, VisionTransformer

DIM, DEPTH, GRID = 64, 2, 5
MASKED = [0, 3, 7, 24, 30, 31, 32, 33, 34, 35, 36]
"""Of the 2 x 25 patches of the golden input."""


def shapes(registers: int) -> Mapping[str, tuple[int, ...]]:
    """Parameters of the published model in its order."""
    register_tokens = {"register_tokens": (1, registers, DIM)} if registers else {}
    block = {
        "norm1.weight": (DIM,),
        "norm1.bias": (DIM,),
        "attn.qkv.weight": (3 * DIM, DIM),
        "attn.qkv.bias": (3 * DIM,),
        "attn.proj.weight": (DIM, DIM),
        "attn.proj.bias": (DIM,),
        "ls1.gamma": (DIM,),
        "norm2.weight": (DIM,),
        "norm2.bias": (DIM,),
        "mlp.fc1.weight": (4 * DIM, DIM),
        "mlp.fc1.bias": (4 * DIM,),
        "mlp.fc2.weight": (DIM, 4 * DIM),
        "mlp.fc2.bias": (DIM,),
        "ls2.gamma": (DIM,),
    }
    return {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + GRID**2, DIM),
        **register_tokens,
        "mask_token": (1, DIM),
        "patch_embed.proj.weight": (DIM, 3, 14, 14),
        "patch_embed.proj.bias": (DIM,),
        **{f"blocks.{index}.{name}": shape for index in range(DEPTH) for name, shape in block.items()},
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
    }


def golden_vit(registers: int = 0) -> VisionTransformer:
    config = ModelConfig.model_validate(
        {"arch": "custom", "embed_dim": DIM, "depth": DEPTH, "heads": 2, "registers": registers}
    )
    model = VisionTransformer(config, GRID)
    model.load_state_dict(det_parameters(shapes(registers)))
    return model


def close(found: Tensor, expected: list[float], atol: float = 5e-6) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected), atol=atol, rtol=1e-6)


# size, registers: start of the class token of both crops, its sum; start of the first patch; of the sum of all patches
GOLDEN = {
    "70x70": (
        (70, 70, 0),
        [1.021121, 0.2979228, 0.2067097, -1.093369],
        [1.00888, 0.3121426, 0.1986828, -1.091731],
        -6.219965863,
        [0.9945523, -0.4313236, -0.1172057, -1.616397],
        [40.88881, -24.9594, -9.671774, -67.30221],
    ),
    "42x56": (
        (42, 56, 0),
        [0.996452, 0.3049768, 0.1724523, -1.070212],
        [0.9964525, 0.3049773, 0.1724533, -1.070213],
        -6.20067735,
        [1.08358, 0.8342944, 0.3231047, -1.50596],
        [8.300302, -4.817327, 2.825413, -13.03683],
    ),
    "98x98": (
        (98, 98, 0),
        [0.9385241, 0.3807858, 0.1443248, -1.07504],
        [0.9444938, 0.3812966, 0.1561561, -1.085693],
        -6.3033553969,
        [1.205738, -1.068666, -0.6675333, -1.558938],
        [74.82942, -49.72926, -19.47015, -124.9297],
    ),
    "70x70-registers": (
        (70, 70, 4),
        [1.225791, -0.1279704, -0.960897, -1.482782],
        [1.225727, -0.127755, -0.9610272, -1.483327],
        0.24578869,
        [1.227916, -0.3955212, -1.625834, -1.841985],
        [55.96596, -12.42102, -56.17054, -79.46648],
    ),
    "42x56-registers": (
        (42, 56, 4),
        [1.228598, -0.1324205, -0.9581637, -1.477622],
        [1.2286, -0.1324191, -0.958164, -1.477629],
        0.23446178,
        [1.715422, -0.04129392, -1.613678, -1.948659],
        [16.93888, -0.4011213, -12.698, -22.27946],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_vit__equals_the_published_model(case: str) -> None:
    (height, width, registers), first, second, total, patch, patches = GOLDEN[case]
    (tokens,) = golden_vit(registers)([det((2, 3, height, width), 5)])
    close(tokens.cls_BD[0, :4], first)
    close(tokens.cls_BD[1, :4], second)
    assert tokens.cls_BD.sum().item() == pytest.approx(total, abs=5e-5)
    close(tokens.patches_BND[0, 0, :4], patch)
    close(tokens.patches_BND.sum((0, 1))[:4], patches, atol=1e-4)
    assert tokens.registers_BRD.shape == (2, registers, DIM)
    if case == "70x70-registers":
        close(tokens.registers_BRD.sum((0, 1))[:4], [8.951691, -2.631957, -10.29348, -14.28203], atol=2e-5)


@pytest.mark.parametrize(
    ("registers", "cls", "patches"),
    [
        (0, [1.070667, 0.2407639, 0.2421021, -1.10485], [45.23901, -27.62367, -8.130344, -66.94724]),
        (4, [1.225113, -0.1269883, -0.9614975, -1.483705], [48.75457, -15.96214, -61.15585, -73.58746]),
    ],
)
def test_vit__masked_equals_the_published_model(registers: int, cls: list[float], patches: list[float]) -> None:
    mask = torch.zeros(50, dtype=torch.bool)
    mask[MASKED] = True
    (tokens,) = golden_vit(registers)([det((2, 3, 70, 70), 5)], [mask.view(2, 25)])
    close(tokens.cls_BD[1, :4], cls)
    close(tokens.patches_BND.sum((0, 1))[:4], patches, atol=1e-4)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    registers=st.sampled_from([0, 2]),
    seed=st.integers(0, 100),
)
def test_vit__packed_groups_equal_separate_forwards(
    sizes: list[tuple[int, int, int]], registers: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = golden_vit(registers)
    groups = [torch.randn(crops, 3, 14 * rows, 14 * columns, generator=generator) for crops, rows, columns in sizes]
    masks = [torch.rand(crops, rows * columns, generator=generator) < 0.3 for crops, rows, columns in sizes]
    packed = model(groups, masks)
    for group, mask, together in zip(groups, masks, packed, strict=True):
        for crop in range(len(group)):
            (alone,) = model([group[crop : crop + 1]], [mask[crop : crop + 1]])
            torch.testing.assert_close(together.cls_BD[crop], alone.cls_BD[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.registers_BRD[crop], alone.registers_BRD[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.patches_BND[crop], alone.patches_BND[0], atol=1e-5, rtol=1e-5)


def without_blocks() -> VisionTransformer:
    """Blocks add nothing: what comes out is the normalised input of the first block."""
    model = golden_vit()
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
    expected = model.norm(model.mask_token + model.pos_embed[0, 1:])
    torch.testing.assert_close(tokens.patches_BND[mask], expected[[3, 24]])
    torch.testing.assert_close(tokens.patches_BND[~mask], unmasked.patches_BND[~mask])


def test_vit__what_is_below_a_mask_does_not_matter() -> None:
    model = golden_vit()
    mask = torch.zeros(1, 25, dtype=torch.bool)
    mask[0, 7] = True  # row 1, column 2
    crops = det((1, 3, 70, 70), 5)
    changed = crops.clone()
    changed[:, :, 14:28, 28:42] = 9.0
    (before,), (after,) = model([crops], [mask]), model([changed], [mask])
    assert torch.equal(before.patches_BND, after.patches_BND)
    assert not torch.equal(model([changed])[0].cls_BD, model([crops])[0].cls_BD)


# Stochastic depth

CROPS = 6


def one_block() -> VisionTransformer:
    config = ModelConfig.model_validate({"arch": "custom", "embed_dim": DIM, "depth": 1, "heads": 2})
    model = VisionTransformer(config, GRID)
    parameters = det_parameters(shapes(0))
    model.load_state_dict({name: value for name, value in parameters.items() if not name.startswith("blocks.1")})
    return model


def first_block(model: VisionTransformer) -> Block:
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block


def plan(attention: list[int], feed_forward: list[int]) -> DropPlan:
    return [([torch.tensor(attention)], [torch.tensor(feed_forward)])]


def through_block(model: VisionTransformer, tokens: Tensor, drops: DropPlan | None) -> Tensor:
    (out,) = first_block(model).forward([tokens], None if drops is None else drops[0])
    return out.detach()


TOKENS = det((CROPS, 4, DIM), 8)


def test_block__dropped_crops_pass_unchanged() -> None:
    out = through_block(one_block(), TOKENS, plan([4, 1], [1, 3]))
    assert torch.equal(out[[0, 2, 5]], TOKENS[[0, 2, 5]])
    assert not any(torch.equal(out[crop], TOKENS[crop]) for crop in (1, 3, 4))


def test_block__kept_branches_are_scaled_by_crops_over_kept() -> None:
    block = first_block(one_block())
    x = TOKENS[4]
    attended = x + 6 / 2 * block.ls1(block.attn(block.norm1(x), [(1, 4)]))
    expected = attended + 6 / 3 * block.ls2(block.mlp(block.norm2(attended)))
    out = through_block(one_block(), TOKENS, plan([4, 1], [1, 3, 4]))
    torch.testing.assert_close(out[4], expected.detach())


def test_block__a_plan_that_keeps_all_changes_nothing() -> None:
    model = one_block()
    everything = [3, 1, 0, 5, 4, 2]
    torch.testing.assert_close(
        through_block(model, TOKENS, plan(everything, everything)), through_block(model, TOKENS, None)
    )


@pytest.mark.parametrize("branch", ["attention", "feed_forward"])
def test_block__over_all_plans_the_mean_is_that_without_drops(branch: str) -> None:
    model = one_block()
    block = first_block(model)
    other = block.ls2 if branch == "attention" else block.ls1
    other.gamma.data.zero_()
    everything = list(range(CROPS))
    kept = [[first, (first + 1) % CROPS] for first in range(CROPS)]  # each crop twice
    plans = [plan(keep, everything) if branch == "attention" else plan(everything, keep) for keep in kept]
    mean = torch.stack([through_block(model, TOKENS, drops) for drops in plans]).mean(0)
    torch.testing.assert_close(mean, through_block(model, TOKENS, None), atol=1e-5, rtol=1e-5)


def test_vit__each_group_has_its_own_drops() -> None:
    model = one_block()
    large, small = det((3, 3, 70, 70), 1), det((4, 3, 28, 28), 2)
    drops: DropPlan = [([torch.tensor([1]), torch.tensor([0, 3])], [torch.tensor([2]), torch.tensor([3, 1])])]
    together = model([large, small], drops=drops)
    for index, group in enumerate((large, small)):
        (alone,) = model([group], drops=[([drops[0][0][index]], [drops[0][1][index]])])
        torch.testing.assert_close(together[index].patches_BND, alone.patches_BND, atol=1e-5, rtol=1e-5)


# Weights


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
        model = golden_vit()
        model.init_weights(torch.Generator().manual_seed(seed))
        return model

    states = [drawn(seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["pos_embed"], states[2]["pos_embed"])
