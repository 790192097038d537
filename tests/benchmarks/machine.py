"""What a measurement was made on: without it a number means nothing."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("heliostat", "torch", "ray", "deepspeed", "pyarrow", "pillow", "opencv-python-headless", "numpy")
_CPU_INFO = Path("/proc/cpuinfo")


def machine_facts() -> dict[str, Any]:
    """Cores that this process may use, memory, CPU and GPU, versions, date, and how busy the machine was before."""
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(_CPU_INFO.read_text() if _CPU_INFO.exists() else ""),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def cpu_model(cpu_info: str) -> str:
    """The processor's name from the text of ``/proc/cpuinfo``; its architecture where that does not tell."""
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _gpu() -> str | None:
    import torch  # run_all.py shows its help without it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
