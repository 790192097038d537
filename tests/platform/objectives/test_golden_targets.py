"""The teacher's targets against the published code, both centrings."""

import pytest
import torch
from support.closed_form import det
from support.golden import GOLDEN, close
from support.targets import targets
from torch import Tensor

from heliostat.objectives.centring import centre_offset, next_centre
from heliostat.objectives.sinkhorn import OneWorker, sinkhorn_offset

LOGITS = det((8, 24), 11)
MASKED_LOGITS = det((15, 24), 41)


def balanced(logits: Tensor, temperature: float) -> Tensor:
    return targets(logits, temperature, sinkhorn_offset(lambda: [logits], temperature, 3, OneWorker()))


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_targets__equal_the_published_ones(temperature: float) -> None:
    expected = GOLDEN["sk"][f"temp{temperature}"]
    found = balanced(LOGITS, temperature)
    close(found, expected)
    # The smallest are 1e-22: their logarithms, 1e-4 of which is the rounding of logits / temperature in fp32.
    torch.testing.assert_close(found.log().flatten(), torch.tensor(expected).log(), rtol=0, atol=1e-4)
    close(found.sum(1), GOLDEN["sk"]["colsum_ok"])


def test_sinkhorn_targets__of_masked_tokens_equal_the_published_ones() -> None:
    close(balanced(MASKED_LOGITS, 0.07)[0], GOLDEN["ibot"]["sk"])


def test_softmax_centring__equals_the_published_one() -> None:
    expected, temperature = GOLDEN["softmax_center"], 0.05
    centre = torch.zeros(24)
    close(targets(LOGITS, temperature, centre_offset(centre, temperature)), expected["first"])
    centre = next_centre(centre, [LOGITS.mean(0)], OneWorker(), momentum=0.9)
    close(centre, expected["center"])
    close(targets(LOGITS, temperature, centre_offset(centre, temperature)), expected["after_update"])
