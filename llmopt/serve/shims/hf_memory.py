"""Where the memory of the model's process goes: weights, the pages of its KV cache, what computing holds beside them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Real requests hold more than those of the warm-up: looked at so often while they run, told from so much.
LOOK_S, GROWN_BYTES = 1.0, 1 << 20
REST = 100  # times what a look takes: 80 ms at a cache of 10 GiB, and the requests wait for it
LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # of the kernel's answer for a page: the others mean nothing


class Activations:
    """The most that computing has held beyond what was there when this was made: by torch on a GPU, by the kernel on a CPU.

    ``written_bytes``: how much of what was reserved for the KV cache is in main memory; that it fills is no activation.
    """

    def __init__(self, model: Any, written_bytes: Callable[[], int]) -> None:
        self.on_gpu = bool(model.device.type == "cuda")
        self.written_bytes, self.before = written_bytes, self.reset_peak()
        self.written, self.peak, self.held = 0, 0, 0
        self.next_look = 0.0
        if not self.on_gpu:
            self.written = written_bytes()

    def reset_peak(self) -> int | None:
        """Forget the peak that loading made; what is held now, ``None`` where the kernel does not say."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return int(torch.cuda.memory_allocated())
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            return kibibytes(Path("/proc/self/status"), "VmHWM:")
        return None

    def most(self) -> int | None:
        """So far.  On a CPU never more than it was, and less where the cache has filled on since the peak."""
        if self.before is None:
            return None
        if self.on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated()) - self.before
        peak = kibibytes(Path("/proc/self/status"), "VmHWM:") or 0
        if peak >= self.peak + GROWN_BYTES:  # else the pages of the cache, a thousand times as many, need no look
            self.peak, filled = peak, self.written_bytes() - self.written
            self.held = max(self.held, peak - self.before - filled)
        return self.held

    def grown(self, told: int | None, *, idle: bool) -> int | None:
        """The most, where that is a MiB more than was ``told``; looked at when nothing runs any more, and once a second."""
        began = time.monotonic()
        if told is None or not (idle or began >= self.next_look):
            return None
        held = self.most()
        took_s = time.monotonic() - began
        self.next_look = began + max(LOOK_S, REST * took_s)
        return held if held is not None and held >= told + GROWN_BYTES else None


def resident_bytes(tensors: Iterable[Any]) -> int:
    """How much of these tensors on a CPU is in memory, by the kernel's own pages; all of it where the kernel does not say."""
    return sum(resident(t.data_ptr(), t.nbytes) for t in tensors)


def resident(address: int, length: int) -> int:
    start = address - address % mmap.PAGESIZE
    pages = -(-(address + length - start) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    if ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), found):
        return length
    return bytes(found).translate(LOWEST_BIT).count(1) * mmap.PAGESIZE


def weights_bytes(model: Any) -> int:
    """Parameters and buffers; tied ones, and views of one storage, are counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def proportional_set_bytes() -> int | None:
    """This process's memory now, shared pages by its share of them; ``None`` where the kernel does not say."""
    try:
        return kibibytes(Path("/proc/self/smaps_rollup"), "Pss:")
    except OSError:
        return None


def kibibytes(file: Path, name: str) -> int | None:
    values = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(name)]
    return int(values[0]) << 10 if values else None
