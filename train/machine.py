"""What a figure was measured on: machine, versions, commit."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def hardware(device: torch.device) -> dict:
    """Processor, cores and the device trained on, by their names."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "cpu": cpu, "threads": torch.get_num_threads()}


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 faster than fp32.

    AMX does, and so do AMD's vectors: an EPYC (Zen 4) takes 0.6 of float32's time for a step of `quick` and of `level1`, and 0.65 to 0.8 for a tiny net's. Intel's avx512_bf16 without AMX was measured slower (1.35 times), before there were convolutions of our own for either (`nets/winograd_cpu.py`).
    """
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or (able.get("avx512_bf16") and vendor() != "GenuineIntel"))


def cpu_has_avx512() -> bool:
    """Whether this processor's vectors hold sixteen float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_f"))


def vendor() -> str:
    """The processor's maker as it names itself, "" where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def commit() -> str | None:
    """The commit of this code, with a + where the tree has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
