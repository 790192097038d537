from typing import Literal

import torch

from heliostat.config.objective import HeadSizes
from heliostat.models.heads import LinearPrototypes, ProjectionHead, Prototypes

SIZES = HeadSizes(hidden=32, bottleneck=16, prototypes=24)


def new_head(seed: int = 0, layer: Literal["weight_norm", "linear"] = "weight_norm") -> ProjectionHead:
    head = ProjectionHead(64, SIZES, layer)
    head.init_weights(torch.Generator().manual_seed(seed))
    return head


def test_prototypes__lengths_are_weight_g_whatever_weight_v() -> None:
    layer = Prototypes(16, 24)
    torch.nn.init.normal_(layer.weight_v, generator=torch.Generator().manual_seed(0))
    layer.weight_g.data = torch.arange(24.0)[:, None]
    rows = layer(torch.eye(16)).T
    torch.testing.assert_close(rows.norm(dim=1), torch.arange(24.0))
    layer.weight_v.data *= torch.rand(24, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    torch.testing.assert_close(layer(torch.eye(16)).T, rows)


def test_bottleneck__has_unit_length() -> None:
    vectors = new_head().bottleneck(torch.randn(50, 64, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(50))


def test_init_weights__follow_the_recipe_and_the_generator() -> None:
    head = new_head()
    assert isinstance(head.last_layer, Prototypes)
    assert head.last_layer.weight_g.eq(1).all()
    assert head.last_layer.weight_v.abs().max() <= 16**-0.5
    assert head.last_layer.weight_v.abs().max() > 0.9 * 16**-0.5
    for name, parameter in head.mlp.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        else:
            assert abs(parameter.std().item() - 0.02) < 0.002
    again, other = new_head(), new_head(1)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    assert not torch.equal(head.last_layer.weight_v, other.last_layer.rows_KZ)


def test_linear_prototypes__are_a_plain_layer_and_have_no_gain() -> None:
    head = new_head(layer="linear")
    layer = head.last_layer
    assert isinstance(layer, LinearPrototypes)
    assert layer.gain_K1 is None
    assert abs(layer.weight.std().item() - 0.02) < 0.002
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(head(x), head.bottleneck(x) @ layer.weight.T)
    assert {name for name, _ in layer.named_parameters()} == {"weight"}
