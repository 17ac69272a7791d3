"""``llmopt doctor``: the machine from recorded answers, rows from environments that lack things, the picture."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from llmopt import doctor, serve
from llmopt.core import hardware, machine, versions
from llmopt.core.environments import Needs
from llmopt.core.versions import bad_pairs
from llmopt.report.doctor import engine_line, print_doctor


class RecordedNvml:
    """NVML's answers on a machine with one H100, by its documentation."""

    class NVMLError(Exception):
        pass

    class Memory:
        total, free = 85520809984, 85029158912

    def __init__(self, driver="570.86.15", cuda=12080):
        self.driver, self.cuda = driver, cuda

    def nvmlInit(self):  # noqa: N802
        pass

    nvmlShutdown = nvmlInit  # noqa: N815

    def __getattr__(self, name):
        return lambda *a: {
            "nvmlSystemGetDriverVersion": self.driver,
            "nvmlSystemGetCudaDriverVersion_v2": self.cuda,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": 0,
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetMemoryInfo": self.Memory,
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
        }[name]


class NoDriver(RecordedNvml):
    def nvmlInit(self):  # noqa: N802
        raise self.NVMLError


@pytest.fixture(scope="module")
def rows():
    return doctor.examine()


def pictured(rows):
    console = Console(width=100, file=io.StringIO())
    print_doctor(rows, console)
    return console.file.getvalue()


def test_a_gpu_is_told_with_its_driver_and_the_cuda_that_it_serves():
    found = hardware.gpus(RecordedNvml())
    assert (found.kind, found.driver, found.cuda) == ("cuda", "570.86.15", "12.8")
    assert found.found[0].compute_capability == "9.0"


def test_a_gpu_that_shares_the_main_memory_keeps_its_name(monkeypatch):
    class Shared(RecordedNvml):
        def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
            raise self.NVMLError

    (found,) = hardware.gpus(Shared()).found
    assert (found.name, found.memory_bytes, found.free_bytes) == ("NVIDIA H100 80GB HBM3", None, None)
    monkeypatch.setattr(hardware, "gpus", lambda: hardware.Gpus(kind="cuda", found=(found,)))
    assert (machine.gpu_names(), machine.free_gpu_bytes()) == (("NVIDIA H100 80GB HBM3",), 0)


def test_free_memory_is_of_the_cards_with_the_most(monkeypatch):
    cards = tuple(hardware.Gpu(name="card", free_bytes=n) for n in (1, 5, 3))
    monkeypatch.setattr(hardware, "gpus", lambda: hardware.Gpus(kind="cuda", found=cards))
    assert [machine.free_gpu_bytes(count) for count in (None, 1, 2)] == [9, 5, 8]


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "AMD_DRIVER", tmp_path / "kfd")
    assert hardware.gpus(NoDriver()).kind == ""


def test_amds_driver_is_seen(monkeypatch, tmp_path):
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(hardware, "AMD_DRIVER", tmp_path / "kfd")
    assert hardware.gpus(NoDriver()).kind == "rocm"


def test_the_processors_instructions_are_read_from_the_kernel(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx avx2 avx512f amx_tile\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_features() == ("AVX2", "AVX-512", "AMX")


def test_an_engine_for_gpus_says_so_where_there_is_none():
    row = doctor.engine_row(serve.backend("trtllm"), ("cpu",))
    assert (row["runs_here"], row["needs_device"]) == (False, "an NVIDIA GPU")


def test_an_engine_that_is_not_here_says_what_brings_it():
    row = doctor.engine_row(replace(serve.backend("sglang"), devices=("cpu",)), ("cpu",))
    assert not row["available"]
    assert "pip install sglang" in row["hint"]


def test_an_engine_on_the_path_is_found_though_its_environment_is_unknown(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sglang").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sglang").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    row = doctor.engine_row(serve.backend("sglang"), ("cpu", "cuda"))
    assert row["hint"].endswith(f"--env {tmp_path}")


def test_an_engine_that_is_a_program_of_its_own_is_shown_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.environments, "tool", lambda name: tmp_path / name if name else None)
    assert doctor.engine_row(serve.backend("llamacpp"), ("cpu",))["environment"] == str(tmp_path / "llama-server")


def test_a_known_bad_pair_is_named_with_its_remedy():
    [(words, pair)] = bad_pairs({"ray": "2.60.0", "FastAPI": "0.165.0", "torch": "2.13.0"})
    assert words == "ray 2.60.0 with fastapi 0.165.0"
    assert "pip install fastapi" in pair.remedy


def test_versions_that_go_together_are_no_pair():
    assert not bad_pairs({"ray": "2.60.0", "fastapi": "0.133.0"})


def test_every_pair_of_the_data_can_be_met():
    for pair in versions.pairs():
        assert len(pair.packages) >= 2
        assert pair.seen in ("tried", "documented")


def test_a_version_that_was_never_tried_is_a_doubt():
    assert "was tried with 0.32.0" in serve.backend("vllm").doubt("0.99.0")
    assert serve.backend("vllm").doubt("0.32.0") is None
    assert "was never run" in serve.backend("sglang").doubt("0.5.23")


def test_every_quantization_of_the_table_is_made_by_somebody(rows):
    assert {name for row in rows["quantizers"] for name in row["makes"]} == {
        row["name"] for row in rows["quantizations"]
    }


def test_it_ends_with_what_can_be_done_now(rows):
    _, _, end = pictured(rows).partition("right now\n")
    assert end.split()[:2] == ["✓", "serve"]
    assert "llmopt demo" in end


def test_the_picture_fits_into_a_terminal_100_wide(rows):
    assert max(map(len, pictured(rows).splitlines())) <= 100


def test_what_is_missing_is_pictured_with_the_way_to_get_it(rows):
    lacking = rows | {"engines": [doctor.engine_row(replace(serve.backend("lmdeploy"), devices=("cpu",)), ("cpu",))]}
    assert "pip install lmdeploy" in pictured(lacking)


def test_an_adapter_that_asks_for_a_program_misses_it():
    from llmopt.core import environments

    needs = Needs(modules=(), programs=("no-such-program",), extra="tgi")
    assert environments.missing(environments.current(), needs) == ("no-such-program",)


def program(folder, monkeypatch, script):
    """Stands for docker: the only program on the PATH beside the shell's."""
    file = folder / "docker"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_docker_whose_daemon_does_not_answer_is_no_docker(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    rows = doctor.examine()
    assert rows["docker_problem"] == "Cannot connect to the Docker daemon"
    assert not any(row["container"] for row in rows["engines"])
    assert "Cannot connect to the Docker daemon" in " ".join(pictured(rows).split())  # its path may be long


def offered(monkeypatch, kind=""):
    """Rows of this machine with a GPU of that kind, and the engines that it offers a container of."""
    monkeypatch.setattr(hardware, "gpus", lambda: hardware.Gpus(kind=kind))
    rows = doctor.examine()
    return rows, {row["name"] for row in rows["engines"] if row["container"]}


def test_a_machine_without_a_gpu_is_offered_no_image_that_is_built_for_one(tmp_path, monkeypatch, rows):
    program(tmp_path, monkeypatch, "exit 0")
    rows, engines = offered(monkeypatch)
    assert (rows["docker"], rows["docker_problem"]) == (str(tmp_path / "docker"), None)
    assert engines == {"llamacpp"}


def test_one_with_an_nvidia_gpu_is_offered_every_image(tmp_path, monkeypatch, rows):
    program(tmp_path, monkeypatch, "exit 0")
    rows, engines = offered(monkeypatch, "cuda")
    assert engines == {row["name"] for row in rows["engines"] if row["image"]} > {"vllm", "sglang", "llamacpp"}
    told = pictured(rows)
    assert "llmopt serve --container, in lmsysorg/sglang" in " ".join(told.split())


def test_one_with_an_amd_gpu_is_offered_none_for_nvidia(tmp_path, monkeypatch, rows):
    program(tmp_path, monkeypatch, "exit 0")
    assert offered(monkeypatch, "rocm")[1] == {"llamacpp"}


def test_no_engine_is_offered_in_a_container_that_cannot_run_here(tmp_path, monkeypatch, rows):
    program(tmp_path, monkeypatch, "exit 0")
    for kind in ("", "cuda", "rocm"):
        assert all(row["runs_here"] for row in offered(monkeypatch, kind)[0]["engines"] if row["container"])


def test_a_way_into_a_container_stands_once(tmp_path, monkeypatch, rows):
    program(tmp_path, monkeypatch, "exit 0")
    for row in offered(monkeypatch, "cuda")[0]["engines"]:
        if not row["available"]:
            assert engine_line(row)[2].count("--container") == 1


def test_a_docker_that_speaks_another_language_is_quoted(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, r"printf 'permission refus\351e\n' >&2; exit 1")
    assert doctor.docker()["docker_problem"] == "permission refus\N{REPLACEMENT CHARACTER}e"


def test_a_docker_that_hangs_is_waited_for_a_second(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "exec sleep 30")
    started = time.monotonic()
    assert doctor.docker()["docker_problem"] == "its daemon did not answer within 1 s"
    assert time.monotonic() - started < 3


def test_a_docker_that_is_no_program_says_so(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "")
    (tmp_path / "docker").write_text("no program")
    assert doctor.docker()["docker_problem"] == "Exec format error"
