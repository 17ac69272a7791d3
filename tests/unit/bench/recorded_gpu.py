"""Fakes of the two GPU libraries: one plays recorded answers of pynvml, the other says what amdsmi would."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

MOMENTS = json.loads((Path(__file__).parents[2] / "recordings" / "nvml_h100.json").read_text())["moments"]


class RecordedNvml:
    """As pynvml on a machine with one card; each reading is the next of ``moments``, the last one stays."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *moments, server=0):
        self.moments, self.server, self.place = moments, server, -1

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return f"card {index}"

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "570.86.15"

    def __getattr__(self, function):
        def answer(handle, *arguments):
            assert handle == "card 0"
            if function == "nvmlDeviceGetMemoryInfo":  # the first question of a reading
                self.place = min(self.place + 1, len(self.moments) - 1)
            found = MOMENTS[self.moments[self.place]][function]
            if isinstance(found, dict) and "error" in found:
                raise self.NVMLError(found["error"])
            if arguments:
                return found[str(arguments[0])]
            if isinstance(found, list):
                return [
                    SimpleNamespace(**user | {"pid": self.server if user["pid"] == "server" else user["pid"]})
                    for user in found
                ]
            return SimpleNamespace(**found) if isinstance(found, dict) else found

        return answer


class FakeAmdsmi:
    """As amdsmi 7.0 on a machine with one card; ``without`` names functions that this card does not have."""

    AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=2)
    AmdSmiClkType = {"GFX": 1}  # noqa: RUF012

    class AmdSmiException(Exception):
        pass

    def __init__(self, *without, server=0):
        self.without = without
        self.answers = {
            "amdsmi_get_gpu_vram_usage": {"vram_total": 196592, "vram_used": 150000},
            "amdsmi_get_gpu_activity": {"gfx_activity": 88, "umc_activity": 30, "mm_activity": "N/A"},
            "amdsmi_get_power_info": {"current_socket_power": "N/A", "average_socket_power": 640, "power_limit": 750},
            "amdsmi_get_violation_status": {"active_ppt_pwr": True, "active_hbm_thrm": False, "active_vr_thrm": "N/A"},
            "amdsmi_get_energy_count": {"energy_accumulator": 10**9, "counter_resolution": 15.3, "timestamp": 1},
            "amdsmi_get_gpu_driver_info": {"driver_name": "amdgpu", "driver_version": "6.14.14"},
            "amdsmi_get_gpu_process_list": [{"pid": server, "memory_usage": {"vram_mem": 10**9}}],
        }

    def amdsmi_init(self, flag):
        assert flag == 2

    def amdsmi_get_processor_handles(self):
        return ["card"]

    def amdsmi_get_clock_info(self, handle, kind):
        return {"clk": {1: 2100}[kind]}

    def __getattr__(self, function):
        if function in self.without:
            raise self.AmdSmiException("NOT_SUPPORTED")
        return lambda handle: self.answers[function]
