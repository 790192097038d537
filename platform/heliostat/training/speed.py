"""How well a device is used: model FLOPs utilisation, and the most memory that was in use."""

import logging
import resource
import time

import torch

from heliostat.models.linear import linear
from heliostat.training.planning.peaks import Precision, tabulated_peak

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices that a peak is measured with: large enough for full speed, small enough for 0.1 s."""
_REPEATS = 4
_MIB = 2**20


class Speedometer:
    """Turns images per second into MFU.

    Args:
        flops_per_image: That the method needs.
        precision: In which they are computed.
        workers: That share the work.
        device: Of this worker; the others have the same.
    """

    def __init__(self, flops_per_image: float, precision: str, workers: int, device: torch.device) -> None:
        self.flops_per_image = flops_per_image
        self._device = device
        self._peak = workers * peak_flops(device, precision)

    def mfu(self, images_per_s: float) -> float:
        """Share of the devices' peak that the method's own operations take."""
        return self.flops_per_image * images_per_s / self._peak

    def memory_peak_mib(self) -> float:
        """The most that was allocated on the GPU since the last call; on a CPU, the process's largest resident set.

        The allocator's counters are read on the host: no synchronisation.
        """
        if self._device.type != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
        peak_bytes = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak_bytes / _MIB


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations per second: tabulated, or measured on CPUs and on GPUs that the table does not know."""
    product: Precision = "fp32"
    if precision in ("bf16", "fp16"):
        product = "bf16" if precision == "bf16" else "fp16"
    elif device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        product = "tf32"
    known = tabulated_peak(torch.cuda.get_device_name(device), product) if device.type == "cuda" else None
    peak = measured_peak(device, _DTYPES[product]) if known is None else known
    how = "measured with a matrix product" if known is None else "data sheet"
    _log.info("peak of %s in %s: %.4g TFLOP/s (%s)", device, product, peak / 1e12, how)
    return peak


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a few square matrix products, operations per second."""
    side = _SIDE[device.type]
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    best_s = float("inf")
    for _ in range(_REPEATS):  # the first one warms up
        start_s = time.perf_counter()
        linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * side**3 / best_s
