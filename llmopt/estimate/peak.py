"""What a device can do at most: out of the table, or of this machine as it was measured once, or as its processor lets guess."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmopt.core import hardware
from llmopt.core.errors import UsageError
from llmopt.core.files import write_atomic
from llmopt.core.interpreters import home
from llmopt.core.machine import available_cores, this_machine
from llmopt.estimate.efficiency import table
from llmopt.estimate.hardware import Device, device
from llmopt.estimate.roofline import Peak

# Of NVIDIA and AMD; asking NVIDIA's library takes longer than all the rest.
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
MEASURED_SPREAD = 0.1
ARRAY_BYTES = 64 << 20  # beyond the caches of most processors, and twice
MATRIX = 1024
EACH_S = 1.0  # of the two measurements
TERA = 1e12


def peak_of(found: Device) -> Peak:
    """Of a row of the table."""
    return Peak(
        name=found.name, key=found.key, kind=found.kind, bandwidth=found.bandwidth_bytes_per_s, link=found.link_bytes_per_s,
        flops={kind: value * TERA for kind, value in found.tflops.items()},
        source=f"{found.source}, {found.date}",
    )  # fmt: skip


def named_peak(bandwidth: float, flops: float, name: str) -> Peak:
    """Of a device that the user describes."""
    return Peak(name=name, key=name, kind="gpu", bandwidth=bandwidth, flops={"fp16": flops}, source="as given")


def this_peak() -> Peak | None:
    """Of this machine: its first GPU, else its processor; ``None`` where it has a GPU that the table lacks."""
    if any(driver.exists() for driver in DRIVERS) and (kind := hardware.gpus().kind):
        # What runs on a GPU says nothing of the processor beside it.
        return gpu_peak(this_machine().gpus, this_gpu_bytes()) if kind == "cuda" else None
    machine = this_machine()
    name = f"this machine ({machine.cpu}, {machine.logical_cores} cores)"
    return measured_peak(machine.fingerprint, name) or guessed_peak(machine.fingerprint, name)


def this_device() -> Device:
    """This machine as a row of the table. Raises UsageError for a GPU that the table lacks."""
    machine = this_machine()
    if machine.gpus:
        return device(machine.gpus[0], this_gpu_bytes())
    peak = this_peak()
    if peak is None:
        raise UsageError("this machine's GPU does not tell its name", hint="name it: --gpu mi300x, or --vram 24GiB")
    return Device(
        key=peak.key, name=peak.name, kind="cpu", memory_bytes=machine.memory_bytes or hardware.memory()[0],
        bandwidth_bytes_per_s=peak.bandwidth,
        tflops={kind: value / TERA for kind, value in peak.flops.items()}, source=peak.source,
    )  # fmt: skip


def this_gpu_bytes() -> int | None:
    """Memory of the first GPU here, as its driver tells it."""
    found = hardware.gpus().found
    return found[0].memory_bytes if found else None


def gpu_peak(names: tuple[str, ...], memory_bytes: int | None = None) -> Peak | None:
    """Of the first GPU, by the name that its driver gives; ``None`` for one that the table lacks."""
    try:
        return peak_of(device(names[0], memory_bytes)) if names else None
    except UsageError:
        return None


# --- a processor ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes and operations a second (float32) of as many threads as engines get here by default."""

    bandwidth: float
    flops: float
    threads: int
    measured_at: str


def engine_cores() -> int:
    """What engines take by default: one core is left to whoever measures."""
    return max(1, available_cores() - 1)


def peaks_file() -> Path:
    return home() / "peaks.json"


def measured_peak(fingerprint: str, name: str) -> Peak | None:
    try:
        row = json.loads(peaks_file().read_text(encoding="utf-8"))[fingerprint]
        found = Measured(**row)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Peak(
        name=name, key=fingerprint, kind="cpu", bandwidth=found.bandwidth, flops={"fp16": found.flops},
        spread=MEASURED_SPREAD, source=f"measured by llmopt calibrate, {found.measured_at[:10]}",
    )  # fmt: skip


def guessed_peak(fingerprint: str, name: str) -> Peak:
    """By the instructions and the number of cores alone."""
    row, cores = table()["processor"], engine_cores()
    features = hardware.cpu_features()
    kind = next((name for name in ("AMX-BF16", "AVX-512", "AVX2", "NEON") if name in features), "other")
    return Peak(
        name=name, key=fingerprint, kind="cpu", bandwidth=min(row["bandwidth"], cores * row["bandwidth_of_a_core"]),
        flops={"fp16": cores * row[kind]}, spread=row["spread"],
        source=f"guessed by its instructions ({kind}): llmopt calibrate measures it",
    )  # fmt: skip


def measure() -> Measured:
    """Read and multiply with numpy for two seconds, on as many threads as engines get; keeps and returns the result."""
    threads = engine_cores()
    found = Measured(
        bandwidth=reading(threads), flops=multiplying(threads), threads=threads,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    write_atomic(
        peaks_file(), json.dumps(kept_peaks() | {this_machine().fingerprint: asdict(found)}, indent=1).encode()
    )
    return found


def kept_peaks() -> dict[str, Any]:
    try:
        return dict(json.loads(peaks_file().read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def reading(threads: int) -> float:
    """Bytes a second that products of large arrays with themselves read: decoding reads its weights so."""
    import numpy as np

    arrays = [np.ones(ARRAY_BYTES // 4, np.float32) for _ in range(threads)]
    # A dot product of a row with itself is read once and bound by the memory; a plain sum is bound by its additions.
    return threads * best_rate(threads, lambda i: float(np.dot(arrays[i], arrays[i])), ARRAY_BYTES)


def multiplying(threads: int) -> float:
    """numpy's own library takes all cores for a product: what one of them does, for as many as engines get."""
    import numpy as np

    array = np.ones((MATRIX, MATRIX), np.float32)
    return threads * best_rate(1, lambda _: np.matmul(array, array), 2 * MATRIX**3)


def best_rate(threads: int, work: Callable[[int], object], each: float) -> float:
    """The best of what one thread did in a second of processor time: what others take of the machine does not count."""
    from concurrent.futures import ThreadPoolExecutor

    best, ends = 0.0, time.monotonic() + EACH_S
    with ThreadPoolExecutor(threads) as pool:
        while time.monotonic() < ends:
            start = time.process_time()
            list(pool.map(work, range(threads)))
            best = max(best, each * threads / max(time.process_time() - start, 1e-6))
    return best
