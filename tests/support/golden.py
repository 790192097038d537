"""Numbers that the published code of DINOv2 gave on inputs that are given by a formula.

Computed by running facebookresearch/dinov2, commit b8931f7 (Apache-2.0), on a CPU in fp32; they are printed with seven
digits. Inputs are ``closed_form.det(shape, seed)``, parameters ``closed_form.det_parameters(shapes)``: filled in the
order of the state dict, the seed of a parameter being its place. The tests that use a number say which input it is of.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "dinov2_golden.json").read_text())


def close(actual: Tensor | Sequence[float], expected: Sequence[float], atol: float = 1e-7) -> None:
    """Equal within 1e-5 of each value, or ``atol``; of a tensor, its elements in row-major order."""
    found = torch.as_tensor(actual).detach().double().flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=atol)
