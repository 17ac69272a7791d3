"""A process tree and its machine: memory, processor time, heat."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil


def tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def resident_of(processes: Sequence[psutil.Process]) -> int | None:
    """Resident memory added up, pages that are shared counted in each: cheap, and it moves as PSS does."""
    total, seen = 0, False
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
            seen = True
    return total if seen else None


def memory_of(processes: Sequence[psutil.Process]) -> int | None:
    total, seen = 0, False
    for process in processes:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", 0) or info.uss
            seen = True
    return total if seen else None


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def host_times() -> tuple[float, float]:
    """(processor seconds of the whole machine, those that its host gave to other guests)."""
    times = psutil.cpu_times()
    return sum(times[:8]), getattr(times, "steal", 0.0)


def cpu_throttles() -> int:
    """How often any core was slowed down by heat, where Linux counts it."""
    total = 0
    for file in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            total += int(file.read_text())
    return total
