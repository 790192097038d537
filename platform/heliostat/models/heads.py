"""The projection head of DINO and iBOT.

Legend: M vectors, D width of the backbone, Z width of the bottleneck, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: rows of ``weight_v`` scaled to the norms in ``weight_g``.

    ``weight_g`` starts at 1 and learns (DINOv2; DINO froze it).
    """

    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))

    def forward(self, z_MZ: Tensor) -> Tensor:
        """Logits, (M, Z) to (M, K)."""
        return F.linear(z_MZ, self.weight_g * F.normalize(self.weight_v, dim=-1))


class ProjectionHead(nn.Module):
    """Three-layer MLP to a unit bottleneck vector, then the prototypes."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = Prototypes(bottleneck, prototypes)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights of the training recipe."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        bound = self.last_layer.weight_v.shape[1] ** -0.5
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)

    def bottleneck(self, x_MD: Tensor) -> Tensor:
        """Unit vectors, (M, D) to (M, Z)."""
        return F.normalize(self.mlp(x_MD), dim=-1)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Logits, (M, D) to (M, K)."""
        logits: Tensor = self.last_layer(self.bottleneck(x_MD))
        return logits
