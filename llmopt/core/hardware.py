"""What of this machine decides which engine and which build runs: instructions, memory, GPUs and their driver."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
AMD_DRIVER = Path("/dev/kfd")
DEVICE_WORDS = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "cpu": "a CPU"}
# The kernel's name of a flag → ours, for those that engines have kernels for.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX-512-BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "i8mm": "I8MM",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """``compute_capability`` is NVIDIA's generation of kernels, as in 9.0; ``None`` is what the card does not tell."""

    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    compute_capability: str | None = None


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """``driver`` and ``cuda`` are the driver's version and the newest CUDA that it serves; ``kind``: cuda, rocm or empty."""

    kind: str = ""
    driver: str | None = None
    cuda: str | None = None
    found: tuple[Gpu, ...] = ()


def cpu_features() -> tuple[str, ...]:
    """In the order of ``FEATURES``; empty where the kernel does not say."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = set(value.split())
                return tuple(ours for flag, ours in FEATURES.items() if flag in flags)
    return ()


def memory() -> tuple[int, int]:
    """(all, available) bytes."""
    import psutil

    now = psutil.virtual_memory()
    return int(now.total), int(now.available)


def gpus(nvml: Any = None) -> Gpus:
    """The NVIDIA GPUs that the driver shows, else whether AMD's driver is there. ``nvml`` stands in for pynvml in tests."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Gpus(kind="rocm") if AMD_DRIVER.exists() else Gpus()
    try:
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return Gpus(
            kind="cuda",
            driver=str(nvml.nvmlSystemGetDriverVersion()),
            cuda=f"{version // 1000}.{version % 1000 // 10}",
            found=tuple(gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())),
        )
    except nvml.NVMLError:
        return Gpus()
    finally:
        nvml.nvmlShutdown()


def gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    held = capability = None
    with contextlib.suppress(nvml.NVMLError):  # one that shares the main memory has none of its own to tell of
        held = nvml.nvmlDeviceGetMemoryInfo(handle)
    with contextlib.suppress(nvml.NVMLError):
        capability = ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=None if held is None else int(held.total),
        free_bytes=None if held is None else int(held.free),
        compute_capability=capability,
    )


def devices() -> tuple[str, ...]:
    """What an engine may run on here: ``cpu``, and ``cuda`` or ``rocm`` where a driver is."""
    kind = gpus().kind
    return ("cpu", kind) if kind else ("cpu",)
