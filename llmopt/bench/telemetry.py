"""Memory, processor and GPU of a server's process tree, sampled beside the load."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 0.25


@dataclass(kw_only=True)
class Telemetry:
    """Samples one process tree while the ``with`` block runs; everything is ``None`` without a process.

    Memory is the proportional set size (pages shared by n processes count 1/n each) where
    the system tells it, else the unique set size.
    """

    pid: int | None
    peak_rss_bytes: int | None = None
    peak_vram_bytes: int | None = None
    cpu_s: float | None = None
    foreign_gpu_processes: bool = False
    steal_share: float | None = None
    throttled: bool = False
    samples: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _cpu_start: float = 0.0
    _host_start: tuple[float, float] = (0.0, 0.0)
    _throttles: int = 0

    def __enter__(self) -> Telemetry:
        self._host_start, self._throttles = host_times(), cpu_throttles()
        if self.pid is not None:
            self._cpu_start = cpu_seconds(self.pid)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        total, stolen = (b - a for a, b in zip(self._host_start, host_times(), strict=True))
        self.steal_share = stolen / total if total > 0 else None
        self.throttled |= cpu_throttles() > self._throttles
        if self._thread is not None and self.pid is not None:
            self._thread.join()
            self._sample()
            self.cpu_s = max(0.0, cpu_seconds(self.pid) - self._cpu_start)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        assert self.pid is not None
        memory = tree_memory_bytes(self.pid)
        if memory is not None:
            self.samples += 1
            self.peak_rss_bytes = max(self.peak_rss_bytes or 0, memory)
        self.throttled |= gpu_throttled()
        video, foreign = tree_vram_bytes(self.pid)
        self.foreign_gpu_processes |= foreign
        if video is not None:
            self.peak_vram_bytes = max(self.peak_vram_bytes or 0, video)

    def record(self) -> dict[str, Any]:
        return {
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_vram_bytes": self.peak_vram_bytes,
            "cpu_s": self.cpu_s,
            "steal_share": self.steal_share,
            "throttled": self.throttled,
            "samples": self.samples,
        }


def tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def tree_memory_bytes(pid: int) -> int | None:
    total, seen = 0, False
    for process in tree(pid):
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


def gpu_throttled() -> bool:
    """Whether a GPU runs slower than it would because of heat, or of a power brake, right now."""
    import pynvml

    try:
        pynvml.nvmlInit()
        slow = pynvml.nvmlClocksThrottleReasonHwSlowdown | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return any(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(h) & slow for h in handles)
    except pynvml.NVMLError:
        return False


def tree_vram_bytes(pid: int) -> tuple[int | None, bool]:
    """GPU memory of the tree, and whether another process uses the same GPU.

    ``None`` without an NVIDIA driver, and where the driver does not show which process is ours, as in
    a container with process ids of its own: unknown is not zero.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        own, total, foreign = {p.pid for p in tree(pid)}, None, False
        for index in range(pynvml.nvmlDeviceGetCount()):
            users = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            mine = [user for user in users if user.pid in own]
            if any(user.usedGpuMemory is None for user in mine):
                return None, False
            if mine:
                total = (total or 0) + sum(user.usedGpuMemory for user in mine)
                foreign |= len(mine) < len(users)
    except pynvml.NVMLError:
        return None, False
    return total, foreign
