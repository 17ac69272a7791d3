"""What this machine can do at most: measured once and kept, else guessed."""

import json

import pytest

from llmopt.core import hardware
from llmopt.estimate import peak
from llmopt.estimate.calibration_runs import with_threads
from llmopt.estimate.roofline import Peak


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))
    monkeypatch.setattr(peak, "DRIVER", tmp_path / "none")
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
    assert peak.gpu_peak(("NVIDIA H100 80GB HBM3",)).key == "h100"
    assert peak.gpu_peak(("NVIDIA GeForce RTX 4090",)).key == "rtx-4090"
    assert peak.gpu_peak(("Something else",)) is None
    assert peak.gpu_peak(()) is None
