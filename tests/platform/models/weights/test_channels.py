import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.backbones import PX, images, small_backbone, tokens_of

from heliostat.models.weights.backbone import Weights, build
from heliostat.models.weights.channels import inflate
from heliostat.models.weights.load import with_channels


@given(before=st.integers(1, 5), after=st.integers(1, 17), seed=st.integers(0, 9))
def test_inflate__an_image_of_equal_channels_gets_the_same_embedding(before: int, after: int, seed: int) -> None:
    weight = torch.randn(8, before, 3, 3, generator=torch.Generator().manual_seed(seed))
    grown = inflate(weight, after)
    assert grown.shape == (8, after, 3, 3)
    torch.testing.assert_close(grown.sum(1), weight.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
def test_with_channels__a_grey_image_gives_the_same_output(channels: int) -> None:
    model = small_backbone(registers=2)
    grown = build(with_channels(Weights(model.config, model.grid, model.state_dict(), "f"), channels))
    grey = images(PX, channels=1)
    expected = tokens_of(model, grey.expand(-1, 3, -1, -1))
    found = tokens_of(grown, grey.expand(-1, channels, -1, -1))
    assert grown.config.channels == channels
    torch.testing.assert_close(found.cls_BD, expected.cls_BD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches_BND, expected.patches_BND, rtol=1e-4, atol=1e-5)


def test_inflate__multiples_repeat_the_colours_at_their_share() -> None:
    weight = torch.randn(8, 3, 2, 2)
    assert torch.equal(inflate(weight, 6), weight.repeat(1, 2, 1, 1) / 2)
    assert torch.equal(inflate(weight, 3), weight)


def test_inflate__the_colours_of_a_fourth_channel_stay_in_balance() -> None:
    weight = torch.randn(8, 3, 2, 2)
    grown = inflate(weight, 4)
    assert torch.equal(grown[:, 0], weight[:, 0] / 2)
    assert torch.equal(grown[:, 3], weight[:, 0] / 2)
    assert torch.equal(grown[:, 1:3], weight[:, 1:])
