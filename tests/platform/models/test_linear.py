"""Against ``torch.nn.functional.linear``, whatever operator is behind it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heliostat.models.linear import Linear, linear


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equals_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Values, and gradients of everything that has one."""
    leaves = [each for each in (x, weight, bias) if each is not None and each.requires_grad]
    mine, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    slope = random(*mine.shape, seed=9).to(mine.dtype)
    gradients = (torch.autograd.grad(out, leaves, slope, retain_graph=True) for out in (mine, theirs))
    for one, other in zip(*gradients, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    has_bias=st.booleans(),
    learns=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(lambda each: each[0] or each[1]),
    seed=st.integers(0, 10**6),
)
def test_linear__equals_torch(
    leading: list[int], inputs: int, outputs: int, has_bias: bool, learns: tuple[bool, ...], seed: int
) -> None:
    x = random(*leading, inputs, seed=seed).requires_grad_(learns[0])
    weight = random(outputs, inputs, seed=seed + 1).requires_grad_(learns[1])
    bias = random(outputs, seed=seed + 2).requires_grad_(learns[2]) if has_bias else None
    assert_equals_torch(x, weight, bias)


def test_linear__takes_tensors_that_are_not_contiguous() -> None:
    x = random(6, 5, 4, seed=0).permute(2, 1, 0).requires_grad_()
    assert_equals_torch(x, random(6, 3, seed=1).T.requires_grad_(), random(6, seed=2)[::2].requires_grad_())
    wide = random(8, 12, seed=3).requires_grad_()
    assert_equals_torch(wide[:, ::2], random(5, 6, seed=4).requires_grad_(), None)
    one = random(1, 6, seed=5).expand(7, 6).requires_grad_()
    assert_equals_torch(one, random(5, 6, seed=4).requires_grad_(), random(1, seed=6).expand(5).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_linear__of_other_types_is_torchs_own(dtype: torch.dtype) -> None:
    x, weight, bias = (random(*shape, seed=1).to(dtype) for shape in ((3, 4), (5, 4), (5,)))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_linear__under_autocast_is_torchs_own() -> None:
    x, weight, bias = random(3, 4, seed=1), random(5, 4, seed=2), random(5, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_linear__fits_into_exported_programs() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    model = Model()
    x = random(3, 4, seed=1)
    exported = torch.export.export(model, (x,))
    assert {str(node.target) for node in exported.graph.nodes if node.op == "call_function"} == {"aten.linear.default"}
    torch.testing.assert_close(exported.module()(x), model(x))


def test_linear_module__has_torchs_parameters_and_numbers() -> None:
    ours, theirs = Linear(4, 5), torch.nn.Linear(4, 5)
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 3, 4, seed=1)
    torch.testing.assert_close(ours(x), theirs(x))


def test_linear__has_second_derivatives() -> None:
    x, weight = (random(*shape, seed=3).requires_grad_() for shape in ((5, 4), (3, 4)))

    def twice(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(function(x, weight).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), (x, weight))

    torch.testing.assert_close(twice(linear), twice(F.linear), rtol=1e-4, atol=1e-4)


def test_linear__works_under_function_transforms() -> None:
    x, weight = random(5, 4, seed=1), random(3, 4, seed=2)
    found = torch.func.grad(lambda w: linear(x, w).square().sum())(weight)
    torch.testing.assert_close(found, 2 * F.linear(x, weight).T @ x)


def test_linear__names_shapes_that_do_not_fit() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(5, 4), torch.randn(3, 6))
