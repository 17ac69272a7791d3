"""What the GPUs of this machine say of themselves, by NVML or AMD SMI, in one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# NVML's bits of why clocks are low (nvmlClocksEventReasons) → our words.
NVML_REASONS = {
    0x004: "power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "power_brake",
}
AMD_REASONS = {
    "active_ppt_pwr": "power_cap",
    "active_prochot_thrm": "hw_slowdown",
    "active_socket_thrm": "hw_thermal",
    "active_vr_thrm": "hw_thermal",
    "active_hbm_thrm": "hw_thermal",
}
# A card at its power limit does what it was built for; slowed down by heat or by a power brake, it does less.
THROTTLED = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "power_brake"})


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """One GPU at one moment; ``None`` is unknown. ``energy_j`` counts from the driver's start.

    ``processes``: (process id, bytes), as the driver numbers them: in a container other than ours.
    """

    index: int
    used_bytes: int | None = None
    total_bytes: int | None = None
    util: float | None = None
    power_w: float | None = None
    sm_mhz: float | None = None
    reasons: tuple[str, ...] = ()
    energy_j: float | None = None
    processes: tuple[tuple[int, int | None], ...] | None = None


class GpuReader(Protocol):
    """A source of samples, one for each GPU that is visible here; ``driver`` is its version, where it tells."""

    name: str
    driver: str | None

    def read(self) -> tuple[GpuSample, ...]: ...


class Nvml:
    """NVIDIA's management library; ``library`` is pynvml, or what answers as it does. Raises its NVMLError without a driver."""

    name = "nvml"

    def __init__(self, library: Any) -> None:
        self.library = library
        library.nvmlInit()
        self.handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self.driver = self.ask(lambda: str(library.nvmlSystemGetDriverVersion()))

    def read(self) -> tuple[GpuSample, ...]:
        return tuple(self.sample(index, handle) for index, handle in enumerate(self.handles))

    def sample(self, index: int, handle: Any) -> GpuSample:
        ask, lib = self.ask, self.library
        memory = ask(lambda: lib.nvmlDeviceGetMemoryInfo(handle))
        util = ask(lambda: lib.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = ask(lambda: lib.nvmlDeviceGetPowerUsage(handle))
        bits = ask(lambda: lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        millijoules = ask(lambda: lib.nvmlDeviceGetTotalEnergyConsumption(handle))
        users = ask(lambda: lib.nvmlDeviceGetComputeRunningProcesses(handle))
        return GpuSample(
            index=index,
            used_bytes=None if memory is None else int(memory.used),
            total_bytes=None if memory is None else int(memory.total),
            util=None if util is None else util.gpu / 100,
            power_w=None if milliwatts is None else milliwatts / 1000,
            sm_mhz=ask(lambda: float(lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM))),
            reasons=tuple(word for bit, word in NVML_REASONS.items() if (bits or 0) & bit),
            energy_j=None if millijoules is None else millijoules / 1000,
            processes=None if users is None else tuple((u.pid, u.usedGpuMemory) for u in users),
        )

    def ask(self, question: Callable[[], T]) -> T | None:
        """``None`` for what this card or driver does not tell; a card that is partitioned (MIG) has no utilisation."""
        try:
            return question()
        except self.library.NVMLError:
            return None


class Amdsmi:
    """AMD's management library, as ROCm ships it; ``library`` is amdsmi. Written from its source (7.0), never run on a card."""

    name = "amdsmi"

    def __init__(self, library: Any) -> None:
        self.library = library
        library.amdsmi_init(library.AmdSmiInitFlags.INIT_AMD_GPUS)
        self.handles = list(library.amdsmi_get_processor_handles())
        told = self.ask(lambda: library.amdsmi_get_gpu_driver_info(self.handles[0])) if self.handles else None
        self.driver = str(told["driver_version"]) if told else None

    def read(self) -> tuple[GpuSample, ...]:
        return tuple(self.sample(index, handle) for index, handle in enumerate(self.handles))

    def sample(self, index: int, handle: Any) -> GpuSample:
        ask, lib = self.ask, self.library
        memory = ask(lambda: lib.amdsmi_get_gpu_vram_usage(handle)) or {}  # in MiB
        activity = ask(lambda: lib.amdsmi_get_gpu_activity(handle)) or {}
        power = ask(lambda: lib.amdsmi_get_power_info(handle)) or {}
        violations = ask(lambda: lib.amdsmi_get_violation_status(handle)) or {}
        energy = ask(lambda: lib.amdsmi_get_energy_count(handle))
        users = ask(lambda: lib.amdsmi_get_gpu_process_list(handle))
        used, there = (number(memory.get(f"vram_{word}")) for word in ("used", "total"))
        util = number(activity.get("gfx_activity"))
        watts = [number(power.get(f"{kind}_socket_power")) for kind in ("current", "average")]
        return GpuSample(
            index=index,
            used_bytes=None if used is None else round(used * 2**20),
            total_bytes=None if there is None else round(there * 2**20),
            util=None if util is None else util / 100,
            power_w=next((w for w in watts if w), None),
            sm_mhz=self.clock(handle),
            reasons=tuple(dict.fromkeys(word for key, word in AMD_REASONS.items() if violations.get(key) is True)),
            energy_j=None if energy is None else energy["energy_accumulator"] * energy["counter_resolution"] / 1e6,
            processes=None if users is None else tuple((u["pid"], u["memory_usage"]["vram_mem"]) for u in users),
        )

    def clock(self, handle: Any) -> float | None:
        kind = self.library.AmdSmiClkType["GFX"]
        return number((self.ask(lambda: self.library.amdsmi_get_clock_info(handle, kind)) or {}).get("clk"))

    def ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self.library.AmdSmiException:
            return None


def number(value: Any) -> float | None:
    """amdsmi says ``"N/A"`` where a card does not tell."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def open_reader() -> GpuReader | None:
    """The GPUs of this machine; ``None`` without a driver."""
    import pynvml

    try:
        reader = Nvml(pynvml)
        if reader.handles:
            return reader
    except pynvml.NVMLError:
        pass
    try:
        import amdsmi
    except (ImportError, OSError, KeyError):  # KeyError: it looks for ROCm in the environment
        return None
    try:
        return Amdsmi(amdsmi)
    except amdsmi.AmdSmiException:
        return None


def used_by_gpu() -> dict[int, int]:
    """Bytes in use on every GPU now: before a server starts, so that its share is known where process ids are hidden."""
    reader = open_reader()
    samples = reader.read() if reader is not None else ()
    return {s.index: s.used_bytes for s in samples if s.used_bytes is not None}
