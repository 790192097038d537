"""Against the dense formula in float64, and against what a dense computation needs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heliostat.models.heads import LinearPrototypes, Prototypes
from heliostat.objectives.cross_entropy import (
    CHUNK_BYTES,
    AnyPrototypes,
    Layer,
    Targets,
    soft_cross_entropy,
)

WIDTH = 8
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.07


def random_layer(kind: str, prototypes: int, seed: int) -> AnyPrototypes:
    generator = torch.Generator().manual_seed(seed)
    layer: AnyPrototypes = (Prototypes if kind == "weight_norm" else LinearPrototypes)(WIDTH, prototypes)
    for name, parameter in layer.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.3 if name == "weight_g" else 1.0)
        if name == "weight_g":
            parameter.data += 1
    return layer


def dense_weights(layer: AnyPrototypes) -> Tensor:
    if isinstance(layer, LinearPrototypes):
        return layer.weight
    weights: Tensor = layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)
    return weights


class Case:
    """Random vectors, layers, targets, pairs and weights."""

    def __init__(self, kind: str, views: int, of_teacher: int, items: int, prototypes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def unit(*shape: int) -> Tensor:
            return F.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)

        self.z = unit(views, items).requires_grad_()
        self.layer = random_layer(kind, prototypes, seed + 1)
        teacher = random_layer(kind, prototypes, seed + 2).requires_grad_(False)
        offset = torch.randn(prototypes, generator=generator)
        self.teacher = teacher
        self.targets = Targets(unit(of_teacher, items), Layer.of(teacher, torch.float32), offset, TEACHER_TEMPERATURE)
        self.pairing = (torch.rand(views, of_teacher, generator=generator) < 0.6).float()
        self.weights = torch.rand(views, items, generator=generator)

    def double(self) -> "Case":
        """The same numbers in float64."""
        self.z = self.z.detach().double().requires_grad_()
        self.layer.double()
        teacher, given = Layer.of(self.teacher.double(), torch.float64), self.targets
        self.targets = Targets(given.z_UIZ.double(), teacher, given.offset_K.double(), TEACHER_TEMPERATURE)
        self.pairing, self.weights = self.pairing.double(), self.weights.double()
        return self

    def leaves(self) -> list[Tensor]:
        return [self.z, *self.layer.parameters()]

    def ours(self, chunk_bytes: int) -> tuple[Tensor, Tensor]:
        return soft_cross_entropy(
            self.z, self.layer, self.targets, self.pairing, self.weights, STUDENT_TEMPERATURE, chunk_bytes=chunk_bytes
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """The formula, on whole matrices of logits."""
        teacher_UIK = self.targets.z_UIZ @ dense_weights(self.teacher).T
        p_UIK = torch.softmax(teacher_UIK / TEACHER_TEMPERATURE + self.targets.offset_K, -1)
        logs_VIK = torch.log_softmax(self.z @ dense_weights(self.layer).T / STUDENT_TEMPERATURE, -1)
        rows_VI = -torch.einsum("vu,uik,vik->vi", self.pairing, p_UIK, logs_VIK)
        return (rows_VI * self.weights).sum(), rows_VI


CASES = {
    "kind": st.sampled_from(["weight_norm", "linear"]),
    "views": st.integers(1, 4),
    "of_teacher": st.integers(1, 2),
    "items": st.integers(0, 7),
    "prototypes": st.integers(1, 12),
    "chunk_items": st.integers(0, 8),
    "seed": st.integers(0, 10**6),
}


def assert_equals_dense(case: Case, chunk_bytes: int, atol: float, rtol: float) -> None:
    (loss, rows), (expected, expected_rows) = case.ours(chunk_bytes), case.dense()
    torch.testing.assert_close(loss, expected, atol=atol, rtol=rtol)
    torch.testing.assert_close(rows, expected_rows, atol=atol, rtol=rtol)
    assert not rows.requires_grad
    mine = torch.autograd.grad(3 * loss, case.leaves())
    for gradient, reference in zip(mine, torch.autograd.grad(3 * expected, case.leaves()), strict=True):
        torch.testing.assert_close(gradient, reference, atol=atol, rtol=rtol)


@settings(max_examples=60)
@given(**CASES)
def test_soft_cross_entropy__equals_the_dense_formula_in_float64(
    kind: str, views: int, of_teacher: int, items: int, prototypes: int, chunk_items: int, seed: int
) -> None:
    case = Case(kind, views, of_teacher, items, prototypes, seed).double()
    chunk_bytes = 4 * max(views, of_teacher) * prototypes * chunk_items
    assert_equals_dense(case, chunk_bytes, atol=1e-10, rtol=1e-9)


@settings(max_examples=40)
@given(**CASES)
def test_soft_cross_entropy__in_float32_too(
    kind: str, views: int, of_teacher: int, items: int, prototypes: int, chunk_items: int, seed: int
) -> None:
    case = Case(kind, views, of_teacher, items, prototypes, seed)
    chunk_bytes = 4 * max(views, of_teacher) * prototypes * chunk_items
    assert_equals_dense(case, chunk_bytes, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["weight_norm", "linear"])
def test_soft_cross_entropy__under_autocast_is_close_and_returns_full_precision(kind: str) -> None:
    case = Case(kind, views=3, of_teacher=2, items=20, prototypes=30, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, rows = case.ours(1000)
        mine = torch.autograd.grad(loss, case.leaves())
    exact, exact_rows = case.ours(1000)
    assert (loss.dtype, rows.dtype) == (torch.float32, torch.float32)
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    torch.testing.assert_close(rows, exact_rows, atol=0.1, rtol=0.05)
    for gradient, reference in zip(mine, torch.autograd.grad(exact, case.leaves()), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.05 * reference.norm()


def test_soft_cross_entropy__its_gradient_can_be_had_once() -> None:
    loss, _ = Case("weight_norm", 2, 2, 3, 5, 0).ours(1000)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be asked for once"):
        loss.backward()


def test_soft_cross_entropy__without_gradients_gives_the_same_numbers() -> None:
    case = Case("weight_norm", 2, 2, 5, 7, 1)
    with torch.no_grad():
        silent = case.ours(100)
    for mine, expected in zip(silent, case.ours(100), strict=True):
        assert torch.equal(mine, expected.detach())


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("grows", [True, False])
def test_soft_cross_entropy__never_makes_a_matrix_of_all_tokens_and_prototypes(grows: bool) -> None:
    """The largest tensor is a chunk of logits or the prototypes, whatever the number of tokens."""
    views, items, prototypes = 3, 400, 300
    case = Case("weight_norm", views, 2, items, prototypes, seed=0)
    case.layer.requires_grad_(grows)
    case.z = case.z.detach().requires_grad_(grows)
    chunk_items = 5
    with Largest() as largest:
        loss, _ = case.ours(4 * views * prototypes * chunk_items)
        if grows:
            loss.backward()
    whole = views * items * prototypes
    assert largest.elements <= max(views * chunk_items * prototypes, views * items * WIDTH) < whole / 10
    with Largest() as largest:
        case.dense()
    assert largest.elements >= whole  # the measurement sees it where it is made


@pytest.mark.parametrize("kind", ["weight_norm", "linear"])
@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_logit_chunks__are_those_of_the_layer_in_order(kind: str, tokens: int) -> None:
    layer = random_layer(kind, 6, 0)
    z = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    chunks = list(Layer.of(layer, z.dtype).logit_chunks(z, chunk_bytes=4 * 6 * 4))
    assert [len(chunk) for chunk in chunks] == {0: [0], 1: [1], 10: [4, 4, 2]}[tokens]
    torch.testing.assert_close(torch.cat(chunks), layer(z).detach())


@pytest.mark.parametrize("kind", ["weight_norm", "linear"])
def test_soft_cross_entropy__is_the_same_with_a_layer_prepared_before(kind: str) -> None:
    case = Case(kind, views=2, of_teacher=1, items=5, prototypes=7, seed=3)
    prepared = Layer.of(case.layer, torch.float32)
    found, _ = soft_cross_entropy(
        case.z, case.layer, case.targets, case.pairing, case.weights, STUDENT_TEMPERATURE, prepared
    )
    expected, _ = case.ours(CHUNK_BYTES)
    for mine, theirs in zip(gradients(found, case), gradients(expected, case), strict=True):
        assert torch.equal(mine, theirs)


def gradients(loss: Tensor, case: Case) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, case.leaves())


def test_soft_cross_entropy__without_a_pairing_pairs_views_of_the_same_index() -> None:
    case = Case("weight_norm", views=2, of_teacher=2, items=5, prototypes=7, seed=3)
    case.pairing = torch.eye(2)
    paired, rows_VI = case.ours(CHUNK_BYTES)
    alone, alone_VI = soft_cross_entropy(case.z, case.layer, case.targets, None, case.weights, STUDENT_TEMPERATURE)
    torch.testing.assert_close((alone, alone_VI), (paired, rows_VI))


def test_soft_cross_entropy__a_gain_of_zero_has_the_gradient_of_weight_norm() -> None:
    case = Case("weight_norm", views=2, of_teacher=2, items=5, prototypes=7, seed=3).double()
    assert isinstance(case.layer, Prototypes)
    with torch.no_grad():
        case.layer.weight_g[2] = 0
    for mine, plain in zip(gradients(case.ours(CHUNK_BYTES)[0], case), gradients(case.dense()[0], case), strict=True):
        torch.testing.assert_close(mine, plain)
