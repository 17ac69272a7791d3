"""What this machine can do at most: measured once and kept, else guessed."""

import json
import re

import pytest

from llmopt.core import hardware
from llmopt.core.errors import UsageError
from llmopt.estimate import peak
from llmopt.estimate.calibration_runs import with_threads
from llmopt.estimate.hardware import device, devices
from llmopt.estimate.roofline import Peak

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA H100 NVL": "h100-nvl", "NVIDIA H20": "h20",
    "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100-SXM4-40GB": "a100-40gb", "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb", "NVIDIA A800-SXM4-80GB": "a800", "NVIDIA GH200 480GB": "gh200",
    "Tesla V100-SXM2-16GB": "v100-16gb", "Tesla V100-SXM2-32GB": "v100", "Tesla V100-PCIE-16GB": "v100-pcie-16gb",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada", "NVIDIA RTX A6000": "rtx-a6000", "Tesla T4": "t4",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000", "NVIDIA L40S": "l40s", "NVIDIA GB10": "gb10",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000", "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "rtx-4070-ti-super", "AMD Instinct MI300X": "mi300x", "NVIDIA B200": "b200",
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))
    monkeypatch.setattr(peak, "DRIVERS", ())
    return tmp_path


def test_a_processor_that_nobody_measured_is_guessed_with_a_wide_spread(home):
    found = peak.this_peak()
    assert "guessed" in found.source
    assert found.spread >= 0.5
    assert found.bandwidth > 1e9


def test_more_instructions_compute_more(home, monkeypatch):
    def of(*features):
        monkeypatch.setattr(hardware, "cpu_features", lambda: features)
        return peak.guessed_peak("x", "x").flops["fp16"]

    assert of() < of("AVX2") < of("AVX2", "AVX-512") < of("AVX2", "AVX-512", "AMX-BF16")


def test_what_was_measured_is_kept_and_taken(home, monkeypatch):
    monkeypatch.setattr(peak, "EACH_S", 0.02)
    monkeypatch.setattr(peak, "ARRAY_BYTES", 1 << 20)
    measured = peak.measure()
    found = peak.this_peak()
    assert found.bandwidth == measured.bandwidth > 1e8
    assert found.flops["fp16"] == measured.flops > 1e8
    assert found.spread < 0.5


def test_a_damaged_file_is_as_none(home):
    peak.peaks_file().write_text(json.dumps({peak.this_machine().fingerprint: {"bandwidth": 1}}))
    assert "guessed" in peak.this_peak().source


def test_more_threads_do_more_on_a_processor_alone(monkeypatch):
    monkeypatch.setattr("llmopt.estimate.calibration_runs.engine_cores", lambda: 1)
    monkeypatch.setattr("llmopt.estimate.calibration_runs.available_cores", lambda: 2)
    cpu = Peak(name="", key="", kind="cpu", bandwidth=1e10, flops={"fp16": 1e11})
    assert with_threads(cpu, 2).flops["fp16"] == 2e11
    assert with_threads(cpu, 8).bandwidth == 2e10
    assert with_threads(cpu, None) == cpu


def test_a_gpu_is_known_by_its_drivers_name():
    assert peak.gpu_peak(("Something else",)) is None
    assert peak.gpu_peak(()) is None
    for name, key in NAMES.items():
        assert device(name).key == key, name


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H200 NVL", "Quadro RTX 6000", "Apple M1 Pro"]
)
def test_a_gpu_that_is_merely_alike_is_not_taken_for_it(name):
    with pytest.raises(UsageError, match="unknown GPU"):
        device(name)


def test_gpus_of_one_name_are_told_apart_by_their_memory():
    name = "NVIDIA GeForce RTX 4060 Ti"
    assert [device(name, gib << 30).key for gib in (8, 16)] == ["rtx-4060-ti-8gb", "rtx-4060-ti-16gb"]
    assert device("NVIDIA A100-SXM4-40GB", 40 << 30).key == "a100-40gb"


@pytest.mark.parametrize("name", ["l4-48gb", "h100-40gb", "rtx 5090 16GB", "gh200-144gb", "m3-max 36GB"])
def test_a_memory_that_no_such_gpu_has_is_refused(name):
    with pytest.raises(UsageError, match="is known") as caught:
        device(name)
    assert f"--gpu {caught.value.message.split()[1]} --vram " in caught.value.hint


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("l4-24gb", "l4"),
        ("H200 141GB", "h200"),
        ("b200 192GB", "b200"),
        ("m3-max 128GB", "m3-max"),
        ("gb10 128gb", "gb10"),
    ],
)
def test_one_that_the_box_says_is_not(name, key):
    assert device(name).key == key


def test_beside_a_gpu_that_is_not_known_nothing_is_said_of_the_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "DRIVERS", (tmp_path,))
    monkeypatch.setattr(hardware, "gpus", lambda: hardware.Gpus(kind="rocm"))
    assert peak.this_peak() is None


def test_every_device_of_a_shared_board_has_its_link():
    fast = [one for one in devices().values() if re.search(r"SXM|Instinct MI3|Gaudi|NVL|^G?[BH]2?00|H20", one.name)]
    assert len(fast) > 10
    assert [one.key for one in fast if one.link_bytes_per_s is None] == []
