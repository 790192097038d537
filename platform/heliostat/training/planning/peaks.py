"""Dense peak rates of GPUs: the denominator of MFU.

Source: NVIDIA's data sheets (V100, T4, A10, A100, L4, L40S, H100, H200, HGX B200; A10G: its data sheet for AWS G5),
tensor cores without sparsity, boost clock.
"""

from collections.abc import Mapping
from typing import Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

_TERA = 1e12
PEAKS: Mapping[str, Mapping[Precision, float]] = {
    "B200": {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75},
    "H200": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H100 NVL": {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60},
    "H100 PCIe": {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51},
    "H100": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5},
    "L40S": {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6},
    "L4": {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3},
    "A10G": {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 31.5},
    "A10": {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2},
    "V100": {"fp16": 125, "fp32": 15.7},
    "T4": {"fp16": 65, "fp32": 8.1},
}
"""Tera-operations per second by a word of the device's name and by precision; the more particular name comes first."""


def tabulated_peak(device_name: str, precision: Precision) -> float | None:
    """Operations per second of a device as its driver names it; None where the table does not know."""
    words = device_name.replace("-", " ").split()
    for name, rates in PEAKS.items():
        if all(word in words for word in name.split()):
            rate = rates.get(precision)
            return None if rate is None else rate * _TERA
    return None
