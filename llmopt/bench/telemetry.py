"""Memory, processor and GPU of a server's process tree, sampled beside the load."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
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
    samples: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _cpu_start: float = 0.0

    def __enter__(self) -> Telemetry:
        if self.pid is not None:
            self._cpu_start = cpu_seconds(self.pid)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
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
        video, foreign = tree_vram_bytes(self.pid)
        self.foreign_gpu_processes |= foreign
        if video is not None:
            self.peak_vram_bytes = max(self.peak_vram_bytes or 0, video)

    def record(self) -> dict[str, Any]:
        return {
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_vram_bytes": self.peak_vram_bytes,
            "cpu_s": self.cpu_s,
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
