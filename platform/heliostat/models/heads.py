"""The projection head of DINO and iBOT.

Legend: M vectors, D width of the backbone, Z width of the bottleneck, K prototypes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.objective import HeadSizes
from heliostat.models.linear import Linear, linear


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: rows of ``weight_v`` scaled to the norms in ``weight_g``.

    ``weight_g`` starts at 1 and learns (DINOv2; DINO froze it).
    """

    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights (torch's default for linear layers; gains 1)."""
        bound = self.weight_v.shape[1] ** -0.5
        nn.init.uniform_(self.weight_v, -bound, bound, generator=generator)

    @property
    def rows_KZ(self) -> Tensor:
        """Prototypes before their scaling."""
        rows: Tensor = self.weight_v
        return rows

    @property
    def gain_K1(self) -> Tensor | None:
        """Norms that the rows are scaled to; None takes them as they are."""
        return self.weight_g

    def forward(self, z_MZ: Tensor) -> Tensor:
        """Logits, (M, Z) to (M, K)."""
        return linear(z_MZ, self.weight_g * F.normalize(self.weight_v, dim=-1))


class LinearPrototypes(nn.Module):
    """Plain linear layer without bias (DINOv3)."""

    gain_K1 = None

    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.weight = nn.Parameter(torch.empty(prototypes, bottleneck))

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)

    @property
    def rows_KZ(self) -> Tensor:
        """Prototypes."""
        return self.weight

    def forward(self, z_MZ: Tensor) -> Tensor:
        """Logits, (M, Z) to (M, K)."""
        return linear(z_MZ, self.weight)


class ProjectionHead(nn.Module):
    """Three-layer MLP to a unit bottleneck vector, then the prototypes."""

    def __init__(
        self, dim: int, sizes: HeadSizes, prototype_layer: Literal["weight_norm", "linear"] = "weight_norm"
    ) -> None:
        super().__init__()
        hidden, bottleneck = sizes.hidden, sizes.bottleneck
        self.mlp = nn.Sequential(
            Linear(dim, hidden), nn.GELU(), Linear(hidden, hidden), nn.GELU(), Linear(hidden, bottleneck)
        )
        layer = Prototypes if prototype_layer == "weight_norm" else LinearPrototypes
        self.last_layer: Prototypes | LinearPrototypes = layer(bottleneck, sizes.prototypes)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights of the training recipe."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        self.last_layer.init_weights(generator)

    def bottleneck(self, x_MD: Tensor) -> Tensor:
        """Unit vectors, (M, D) to (M, Z)."""
        return F.normalize(self.mlp(x_MD), dim=-1)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Logits, (M, D) to (M, K)."""
        logits: Tensor = self.last_layer(self.bottleneck(x_MD))
        return logits
