import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.models.attention import packed_attention

LAYOUTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4)


def one_sequence(qkv_N3HE: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(E)) v of every head, written out, in float64; (N, H * E)."""
    q, k, v = qkv_N3HE.double().permute(1, 2, 0, 3)
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
    attended: torch.Tensor = weights @ v
    return attended.transpose(0, 1).flatten(1)


@given(layout=LAYOUTS, heads=st.integers(1, 3), width=st.sampled_from([1, 4, 8]), seed=st.integers(0, 1000))
def test_packed_attention__equals_a_loop_over_sequences(
    layout: list[tuple[int, int]], heads: int, width: int, seed: int
) -> None:
    lengths = [tokens for sequences, tokens in layout for _ in range(sequences)]
    qkv = 3 * torch.randn(sum(lengths), 3, heads, width, generator=torch.Generator().manual_seed(seed))
    expected = torch.cat([one_sequence(part) for part in qkv.split(lengths)])
    found = packed_attention(qkv, layout)
    assert found.shape == (sum(lengths), heads * width)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_packed_attention__no_gradient_crosses_sequences() -> None:
    layout = [(2, 5), (3, 2)]
    qkv = torch.randn(16, 3, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    packed_attention(qkv, layout)[5:10].sum().backward()  # the second sequence
    assert qkv.grad is not None
    touched = qkv.grad.flatten(1).abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention__keeps_the_type(dtype: torch.dtype) -> None:
    assert packed_attention(torch.ones(6, 3, 1, 8, dtype=dtype), [(2, 3)]).dtype == dtype
