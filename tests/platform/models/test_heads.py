import torch
from support.closed_form import det, det_parameters

from heliostat.models.heads import ProjectionHead, Prototypes

SHAPES = {
    "mlp.0.weight": (32, 64),
    "mlp.0.bias": (32,),
    "mlp.2.weight": (32, 32),
    "mlp.2.bias": (32,),
    "mlp.4.weight": (16, 32),
    "mlp.4.bias": (16,),
    "last_layer.weight_g": (24, 1),
    "last_layer.weight_v": (24, 16),
}


def new_head(seed: int = 0) -> ProjectionHead:
    head = ProjectionHead(64, 32, 16, 24)
    head.init_weights(torch.Generator().manual_seed(seed))
    return head


def test_projection_head__equals_the_published_one() -> None:
    head = ProjectionHead(64, 32, 16, 24)
    head.load_state_dict(det_parameters(SHAPES))
    logits = head(det((5, 64), 3))
    expected = [-0.681647, -0.1370178, 0.4473104, 0.7469742, 0.6878746, 0.2658026, -0.3156582, -0.7352485]
    torch.testing.assert_close(logits.flatten()[:8], torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.sum(), torch.tensor(3.79791698), atol=2e-5, rtol=0)


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
    assert not torch.equal(head.last_layer.weight_v, other.last_layer.weight_v)
