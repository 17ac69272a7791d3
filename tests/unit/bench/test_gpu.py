import pytest

from llmopt.bench.gpu import Amdsmi, Nvml, open_reader
from unit.bench.recorded_gpu import FakeAmdsmi, RecordedNvml


def nvml(moment, server=7):
    (found,) = Nvml(RecordedNvml(moment, server=server)).read()
    return found


def amd(*without):
    (found,) = Amdsmi(FakeAmdsmi(*without, server=7)).read()
    return found


def test_what_nvml_says_in_our_units():
    found = nvml("loaded")
    assert found.used_bytes == 70_812 << 20
    assert (found.util, found.power_w, found.sm_mhz) == (0.97, 412.87, 1980)
    assert found.energy_j == 912_004_930.112
    assert found.processes == ((7, 70_284 << 20),)


@pytest.mark.parametrize(
    ("reader", "version"), [(Nvml(RecordedNvml("idle")), "570.86.15"), (Amdsmi(FakeAmdsmi()), "6.14.14")]
)
def test_a_reader_tells_its_driver(reader, version):
    assert reader.driver == version


def test_a_driver_that_does_not_tell_its_version_is_unknown():
    assert Amdsmi(FakeAmdsmi("amdsmi_get_gpu_driver_info")).driver is None


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("idle", ()),
        ("loaded", ()),
        ("power_cap", ("power_cap",)),
        ("hot", ("sw_thermal",)),
        ("power_brake", ("hw_slowdown", "power_brake")),
    ],
)
def test_why_clocks_are_low(moment, words):
    assert nvml(moment).reasons == words


def test_what_a_partitioned_card_does_not_tell_is_unknown():
    found = nvml("mig")
    assert (found.util, found.power_w, found.energy_j) == (None, None, None)
    assert found.used_bytes == 70_812 << 20


def test_what_amd_smi_says_in_our_units():
    found = amd()
    assert (found.used_bytes, found.util, found.power_w, found.sm_mhz) == (150_000 << 20, 0.88, 640, 2100)
    assert found.energy_j == pytest.approx(15_300)
    assert (found.reasons, found.processes) == (("power_cap",), ((7, 10**9),))


def test_what_an_amd_card_does_not_tell_is_unknown():
    assert amd("amdsmi_get_energy_count").energy_j is None
    assert amd("amdsmi_get_gpu_vram_usage").used_bytes is None
    assert amd("amdsmi_get_gpu_process_list").processes is None


def test_without_a_driver_there_is_no_reader(monkeypatch):
    import pynvml

    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert open_reader() is None
