"""Other libraries' vision models, to compare ours with them. Import timm and transformers from here, not by themselves.

Both import torchvision, none of whose operators is used here. Its wheel on PyPI is made for CUDA; beside a CPU build of
torch its operators cannot load, and then it refuses to be imported because two of them are unknown. So these two are
declared, without an implementation, where that is so.
"""

import torch

_OPERATORS = ("nms", "qnms")

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in _OPERATORS:
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402 -- only now can it be imported
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()

__all__ = ["timm", "transformers"]
