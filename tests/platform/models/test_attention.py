import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.models.attention import (
    Backend,
    choose_backend,
    fault_of,
    packed_attention,
    preferred_backend,
    sequence_starts,
    usable_backend,
)

LAYOUTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4)
CPU = torch.device("cpu")
ONE_KERNEL: tuple[Backend, ...] = ("xformers", "varlen")


def one_sequence(qkv_N3HE: torch.Tensor, angles_PF: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T / sqrt(E)) v of every head, written out; q and k of the last P tokens turned; (N, H * E)."""
    q, k, v = qkv_N3HE.permute(1, 2, 0, 3)
    if angles_PF is not None:
        q, k = turned(q, angles_PF), turned(k, angles_PF)
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
    attended: torch.Tensor = weights @ v
    return attended.transpose(0, 1).flatten(1)


def turned(x_HNE: torch.Tensor, angles_PF: torch.Tensor) -> torch.Tensor:
    """Channels f and f + E / 2 as a complex number, times exp(i angle)."""
    first, second = x_HNE.chunk(2, -1)
    plane = torch.complex(first, second)
    others = x_HNE.shape[1] - angles_PF.shape[0]
    factors = torch.cat([torch.zeros(others, angles_PF.shape[1]), angles_PF])
    plane = plane * torch.polar(torch.ones_like(factors), factors)
    return torch.cat([plane.real, plane.imag], -1)


def random_angles(layout: Sequence[tuple[int, int]], half: int, seed: int) -> list[torch.Tensor | None]:
    """Angles (P, E / 2) for all tokens of a group but one, for all of them, for none, in turn."""
    generator = torch.Generator().manual_seed(seed)
    patches = [(tokens - 1, tokens, None)[index % 3] for index, (_, tokens) in enumerate(layout)]
    return [None if count is None else 6 * torch.rand(count, half, generator=generator) for count in patches]


def tables(angles: Sequence[torch.Tensor | None]) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    return [None if each is None else (each.sin().repeat(1, 2), each.cos().repeat(1, 2)) for each in angles]


@pytest.mark.parametrize("with_rope", [False, True])
@given(layout=LAYOUTS, heads=st.integers(1, 3), width=st.sampled_from([2, 4, 8]), seed=st.integers(0, 1000))
def test_packed_attention__equals_a_loop_over_sequences(
    layout: list[tuple[int, int]], heads: int, width: int, seed: int, with_rope: bool
) -> None:
    lengths = [tokens for sequences, tokens in layout for _ in range(sequences)]
    generator = torch.Generator().manual_seed(seed)
    qkv = (3 * torch.randn(sum(lengths), 3, heads, width, generator=generator)).double().requires_grad_()
    upstream = torch.randn(sum(lengths), heads * width, generator=generator).double()
    angles = random_angles(layout, width // 2, seed) if with_rope else [None] * len(layout)
    per_sequence = [each for (sequences, _), each in zip(layout, angles, strict=True) for _ in range(sequences)]
    loop = torch.cat([one_sequence(*each) for each in zip(qkv.split(lengths), per_sequence, strict=True)])
    found = packed_attention(qkv, layout, rope=tables(angles) if with_rope else None)
    assert found.shape == (sum(lengths), heads * width)
    torch.testing.assert_close(found, loop, atol=1e-5, rtol=1e-5)
    (expected_gradient,) = torch.autograd.grad(loop, qkv, upstream)
    (gradient,) = torch.autograd.grad(found, qkv, upstream)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_packed_attention__no_gradient_crosses_sequences() -> None:
    layout = [(2, 5), (3, 2)]
    qkv = torch.randn(16, 3, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    packed_attention(qkv, layout)[5:10].sum().backward()  # the second sequence
    assert qkv.grad is not None
    touched = qkv.grad.flatten(1).abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention__keeps_the_type(dtype: torch.dtype, with_rope: bool) -> None:
    rope = [(torch.zeros(2, 8), torch.ones(2, 8))] if with_rope else None
    assert packed_attention(torch.ones(6, 3, 1, 8, dtype=dtype), [(2, 3)], rope=rope).dtype == dtype


@pytest.mark.parametrize("layout", [[(2, 2)], [(2, 4)], [(2, 3), (1, 1)]])
def test_packed_attention__layout_must_cover_the_tokens(layout: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="does not cover 6 tokens"):
        packed_attention(torch.ones(6, 3, 1, 8), layout)


def test_packed_attention__rope_must_match_the_layout() -> None:
    with pytest.raises(ValueError, match="zip"):
        packed_attention(torch.ones(6, 3, 1, 8), [(1, 3), (1, 3)], rope=[None])


@pytest.mark.parametrize("backend", ONE_KERNEL)
def test_packed_attention__full_precision_never_reaches_a_kernel_of_half_precision(backend: Backend) -> None:
    qkv = torch.randn(7, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    layout = [(2, 3), (1, 1)]
    assert torch.equal(packed_attention(qkv, layout, backend), packed_attention(qkv, layout, "grouped"))


@pytest.mark.parametrize(
    ("device_type", "faults", "expected", "reason"),
    [
        ("cpu", {}, "grouped", "CUDA"),
        ("mps", {}, "grouped", "CUDA"),
        ("cpu", {"xformers": None, "varlen": None}, "grouped", "CUDA"),
        ("cuda", {"xformers": None, "varlen": None}, "xformers", "works here"),
        ("cuda", {"xformers": None, "varlen": "too old"}, "xformers", "works here"),
        ("cuda", {"xformers": "no module", "varlen": None}, "varlen", "xformers: no module; works here"),
        ("cuda", {"xformers": "no module", "varlen": "too old"}, "grouped", "xformers: no module; varlen: too old"),
    ],
)
def test_preferred_backend__table(
    device_type: str, faults: Mapping[Backend, str | None], expected: Backend, reason: str
) -> None:
    backend, said = preferred_backend(device_type, faults)
    assert backend == expected
    assert reason in said


@pytest.mark.parametrize("backend", ["grouped", "varlen", "xformers"])
@pytest.mark.parametrize(
    ("dtype", "head_width", "fits"),
    [
        (torch.bfloat16, 64, True),
        (torch.float16, 64, True),
        (torch.bfloat16, 8, True),
        (torch.bfloat16, 256, True),
        (torch.bfloat16, 264, False),
        (torch.bfloat16, 20, False),
        (torch.float32, 64, False),
        (torch.float64, 64, False),
    ],
)
def test_usable_backend__table(backend: Backend, dtype: torch.dtype, head_width: int, fits: bool) -> None:
    assert usable_backend(backend, dtype, head_width) == (backend if fits else "grouped")


def test_choose_backend__cpu_is_grouped_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    choose_backend.cache_clear()
    with caplog.at_level(logging.INFO, "heliostat.models.attention"):
        assert [choose_backend(CPU) for _ in range(3)] == ["grouped"] * 3
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "cpu: grouped (" in record.getMessage()


def test_fault_of__tells_what_works_on_a_cpu() -> None:
    assert fault_of("grouped", CPU) is None
    for backend in ONE_KERNEL:
        fault = fault_of(backend, CPU)
        assert fault is not None and "Error: " in fault and "\n" not in fault


@given(layout=LAYOUTS)
def test_sequence_starts__bound_every_sequence(layout: list[tuple[int, int]]) -> None:
    starts = sequence_starts(layout)
    assert starts[0] == 0
    steps = [after - before for before, after in pairwise(starts)]
    assert steps == [tokens for sequences, tokens in layout for _ in range(sequences)]


def test_packed_attention__what_inference_caches_serves_training() -> None:
    # The meta device has shapes and autograd but no numbers, so a kernel for GPUs can be traced through without one.
    layout = [(2, 3), (1, 5)]
    qkv = torch.empty(11, 3, 2, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with torch.inference_mode():
        packed_attention(qkv, layout, "varlen")
    out = packed_attention(qkv, layout, "varlen")
    assert out.shape == (11, 128)
    out.square().sum().backward()
    assert qkv.grad is not None and qkv.grad.shape == qkv.shape


def on_cuda(backend: Backend) -> torch.device:
    """The GPU, where the backend works on it; else the test is skipped and says why."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    fault = fault_of(backend, device)
    if fault is not None:
        pytest.skip(f"{backend} does not work on this GPU: {fault}")
    return device


@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ONE_KERNEL)
def test_packed_attention__one_kernel_equals_the_groups(backend: Backend, dtype: torch.dtype, with_rope: bool) -> None:
    device = on_cuda(backend)
    layout = [(3, 257), (5, 50), (1, 1)]
    angles = random_angles(layout, 32, seed=1)
    rope = [None if each is None else (each[0].to(device), each[1].to(device)) for each in tables(angles)]
    generator = torch.Generator().manual_seed(0)
    tokens = sequence_starts(layout)[-1]
    qkv = torch.randn(tokens, 3, 6, 64, generator=generator).to(device, dtype).requires_grad_()
    upstream = torch.randn(tokens, 6 * 64, generator=generator).to(device, dtype)
    with torch.inference_mode():  # what is cached for a layout here must serve the backward pass below
        packed_attention(qkv, layout, backend, rope if with_rope else None)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for each in (backend, "grouped"):
        out = packed_attention(qkv, layout, each, rope if with_rope else None)
        results.append((out, torch.autograd.grad(out, qkv, upstream)[0]))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        difference = (found.float() - expected.float()).norm() / expected.float().norm()
        assert difference < 4 * torch.finfo(dtype).eps


def test_choose_backend__works_on_this_gpu() -> None:
    device = on_cuda("grouped")
    assert fault_of(choose_backend(device), device) is None
