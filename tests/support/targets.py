"""The teacher's distributions as a whole matrix, which the product never makes: what an offset stands for."""

import torch
from torch import Tensor


def targets(logits_TK: Tensor, temperature: float, offset_K: Tensor) -> Tensor:
    """softmax(logits / temperature + offset), (T, K), fp32, rows sum to 1."""
    return torch.softmax(logits_TK.float() / temperature + offset_K, dim=-1)
