import pytest
import torch
from support.worlds import CPU_DEVICE

from heliostat.training.planning.peaks import tabulated_peak
from heliostat.training.speed import Speedometer, measured_peak


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp32", 60),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp32", 8.1),
        ("NVIDIA B200", "bf16", 2250),
    ],
)
def test_tabulated_peak__of_drivers_names(name: str, precision: str, tera: float) -> None:
    assert tabulated_peak(name, precision) == pytest.approx(tera * 1e12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "precision"), [("Tesla T4", "bf16"), ("NVIDIA L40", "bf16"), ("Quadro", "fp32")])
def test_tabulated_peak__knows_not_everything(name: str, precision: str) -> None:
    assert tabulated_peak(name, precision) is None  # type: ignore[arg-type]


def test_measured_peak__is_no_less_than_a_product_of_the_model_reaches() -> None:
    assert 1e9 < measured_peak(CPU_DEVICE, torch.float32) < 1e14


def test_speedometer__divides_by_all_workers() -> None:
    one, two = (Speedometer(2e9, "fp32", workers, CPU_DEVICE) for workers in (1, 2))
    assert one.flops_per_image == 2e9
    assert one.mfu(10.0) > 0
    assert one.mfu(20.0) == pytest.approx(2 * one.mfu(10.0))
    assert two.mfu(10.0) < one.mfu(10.0)  # the peak is measured anew; twice as many workers outweigh its noise
    assert one.memory_peak_mib() > 50
