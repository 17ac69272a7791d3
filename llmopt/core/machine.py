"""What the numbers are taken on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from llmopt.core import hardware
from llmopt.core.domain import Machine, stable_hash


@functools.cache
def this_machine() -> Machine:
    """This machine. The fingerprint covers processor, cores and GPUs; memory is rounded to GiB."""
    import psutil

    cpu, gpus = cpu_model(), gpu_names()
    logical, memory = available_cores(), psutil.virtual_memory().total
    identity = [cpu, logical, round(memory / 2**30), gpus]
    return Machine(
        fingerprint=stable_hash(identity, 10),
        cpu=cpu,
        physical_cores=min(logical, psutil.cpu_count(logical=False) or logical),
        logical_cores=logical,
        memory_bytes=memory,
        gpus=gpus,
        system=f"{platform.system()} {platform.machine()}",
    )


def available_cores() -> int:
    """Logical cores that this process may run on: a container or taskset may leave fewer than the machine has."""
    return len(core_ids())


def core_ids() -> list[int]:
    """The numbers of those cores."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows; empty without one."""
    return tuple(gpu.name for gpu in hardware.gpus().found)


def free_memory_bytes() -> int:
    """What processes may take of the main memory now."""
    return hardware.memory()[1]


def free_gpu_bytes(count: int | None = None) -> int:
    """The free memory of all NVIDIA GPUs together, or of the ``count`` with the most; 0 without one."""
    return sum(sorted((gpu.free_bytes or 0 for gpu in hardware.gpus().found), reverse=True)[:count])
