"""A block's branches over crops that they skip."""

import pytest
import torch
from support.backbones import small_backbone
from support.closed_form import det
from torch import Tensor

from heliostat.models.block import Block, DropPlan
from heliostat.models.vit import VisionTransformer

DIM = 64

CROPS = 6


def one_block() -> VisionTransformer:
    return small_backbone(depth=1)


def first_block(model: VisionTransformer) -> Block:
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block


def plan(attention: list[int], feed_forward: list[int]) -> DropPlan:
    return [([torch.tensor(attention)], [torch.tensor(feed_forward)])]


def through_block(model: VisionTransformer, tokens: Tensor, drops: DropPlan | None) -> Tensor:
    (out,) = first_block(model).forward([tokens], None if drops is None else drops[0], None, "grouped")
    return out.detach()


TOKENS = det((CROPS, 4, DIM), 8)


def test_block__dropped_crops_pass_unchanged() -> None:
    out = through_block(one_block(), TOKENS, plan([4, 1], [1, 3]))
    assert torch.equal(out[[0, 2, 5]], TOKENS[[0, 2, 5]])
    assert not any(torch.equal(out[crop], TOKENS[crop]) for crop in (1, 3, 4))


def test_block__kept_branches_are_scaled_by_crops_over_kept() -> None:
    block = first_block(one_block())
    x = TOKENS[4]
    mixed = block.attn(block.norm1(x), [(1, 4)], None, "grouped")
    attended = x + 6 / 2 * block.ls1.gamma * block.attn.proj(mixed)
    expected = attended + 6 / 3 * block.ls2.gamma * block.mlp.last(block.mlp(block.norm2(attended)))
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


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_block__layer_scale_multiplies_the_branches(ffn: str) -> None:
    """It is folded into the last linear layers; what is learned must not change by that."""
    block = first_block(small_backbone(depth=1, ffn=ffn))
    tokens = TOKENS.clone().requires_grad_()
    (out,) = block.forward([tokens], None, None, "grouped")
    x = tokens.flatten(0, 1)
    attended = x + block.ls1.gamma * block.attn.proj(block.attn(block.norm1(x), [(CROPS, 4)], None, "grouped"))
    expected = attended + block.ls2.gamma * block.mlp.last(block.mlp(block.norm2(attended)))
    torch.testing.assert_close(out.flatten(0, 1), expected)
    leaves = [tokens, *block.parameters()]
    weights = det((CROPS, 4, DIM), 3)
    mine = torch.autograd.grad((weights * out).sum(), leaves)
    theirs = torch.autograd.grad((weights * expected.view_as(out)).sum(), leaves)
    for gradient, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-4, rtol=1e-4)
