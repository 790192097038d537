"""Deterministic mode: the same bits from the same step, on the same hardware and number of workers."""

import os

import torch
import torch.utils.deterministic

DETERMINISTIC_ENV = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Environment of workers, which cuBLAS reads when CUDA starts."""


def make_deterministic() -> None:
    """Only deterministic operators from now on; one that has no such form raises an error and names itself."""
    for name, value in DETERMINISTIC_ENV.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Filling what is never read would touch gigabytes of DeepSpeed's buckets in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
