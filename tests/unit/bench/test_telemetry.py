import os
import subprocess
import sys
import time

import pytest

from llmopt.bench.gpu import GpuSample, Nvml
from llmopt.bench.processes import tree
from llmopt.bench.telemetry import Paced, Telemetry
from unit.bench.recorded_gpu import RecordedNvml

HUNGRY = "import sys; block = bytes(range(256)) * 400_000; print('up', flush=True); sys.stdin.read()"


def test_without_a_process_everything_is_unknown():
    with Telemetry(pid=None) as found:
        pass
    assert (found.peak_rss_bytes, found.peak_vram_bytes, found.cpu_s, found.samples) == (None, None, None, 0)


def test_memory_and_cpu_of_a_process():
    with Telemetry(pid=os.getpid()) as found:
        sum(range(300_000))
    assert found.peak_rss_bytes > 1 << 20
    assert found.cpu_s >= 0
    assert found.samples >= 1


def test_children_are_part_of_the_tree():
    child = subprocess.Popen([sys.executable, "-S", "-c", HUNGRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        assert child.pid in {p.pid for p in tree(os.getpid())}
        with Telemetry(pid=os.getpid()) as found:
            pass
    finally:
        child.communicate()
    assert found.peak_rss_bytes > 100_000_000


def test_a_process_that_is_gone_has_no_memory():
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    with Telemetry(pid=child.pid) as found:
        pass
    assert found.peak_rss_bytes is None


# --- GPUs, as recorded ----------------------------------------------------------------------------------------------


def watched(*moments, pid=None, **options):
    """Telemetry of this process with so many readings of a card; ``server`` in a recording is this process."""
    found = Telemetry(
        pid=os.getpid(), reader=lambda: Nvml(RecordedNvml(*moments, server=pid or os.getpid())), **options
    )
    with found:
        while len(found.gpu) < len(moments):  # one before the load, the others beside it
            time.sleep(0.01)
    return found


def test_gpu_memory_power_and_use_of_the_servers_card():
    found = watched("loaded", "power_cap")
    assert found.peak_vram_bytes == 70_308 << 20
    assert found.metrics()["gpu_util"] == pytest.approx((0.97 + 2 * 1.0) / 3), (
        "the last moment stays, and is read at the end"
    )
    assert found.record()["gpus"] == [0]
    assert found.record()["gpu_memory_bytes"] == [81_559 << 20]
    assert found.record()["clock_reasons"] == {"power_cap": pytest.approx(2 / 3)}
    assert not found.throttled, "a card at its power limit does what it was built for"


def test_energy_is_what_the_cards_counter_went_up_by():
    assert watched("loaded", "power_cap").energy_j == pytest.approx(350.328)


class Cards:
    """A reader of two cards; the server is seen on the second one only from its second reading on."""

    name, driver = "two cards", None

    def __init__(self):
        self.readings = 0

    def read(self):
        self.readings += 1
        here = ((os.getpid(), 1 << 30),)
        return (
            GpuSample(index=0, energy_j=5_000.0 + 10 * self.readings, processes=here),
            GpuSample(index=1, energy_j=900_000.0 + self.readings, processes=here if self.readings > 1 else ()),
        )


def test_a_card_that_is_recognised_later_adds_what_it_took_and_not_its_whole_counter():
    reader = Cards()
    with Telemetry(pid=os.getpid(), reader=lambda: reader) as found:
        while reader.readings < 3:
            time.sleep(0.01)
    assert found.record()["gpus"] == [0, 1]
    assert found.energy_j == 11 * (reader.readings - 1)


def test_energy_without_a_counter_is_power_over_time():
    rows = [{"t_ns": t * 10**9, "power_w": w} for t, w in ((0, 100.0), (1, 200.0), (3, 200.0))]
    assert Telemetry(pid=None, rows=rows).energy_j == 150 + 400
    assert Telemetry(pid=None, rows=rows[:1]).energy_j is None


@pytest.mark.parametrize("moment", ["hot", "power_brake"])
def test_heat_and_power_brakes_are_noticed(moment):
    assert watched("loaded", moment).throttled


def test_another_process_on_the_card_is_noticed():
    assert watched("shared").foreign_gpu_processes
    assert not watched("loaded").foreign_gpu_processes


def test_a_card_that_the_server_does_not_use_is_not_its_own():
    found = watched("loaded", pid=1 << 30)
    assert (found.peak_vram_bytes, found.energy_j, found.metrics()["gpu_util"]) == (None, None, None)


def test_where_the_driver_hides_ids_memory_is_what_was_added():
    found = watched("hidden_ids", vram_before={0: 524 << 20})
    assert (found.peak_vram_bytes, found.record()["gpus"]) == ((70_812 - 524) << 20, [0])
    assert watched("unknown_sizes", vram_before={0: 524 << 20}).peak_vram_bytes == (70_812 - 524) << 20
    assert watched("unknown_sizes").peak_vram_bytes is None


def test_a_card_that_was_as_full_before_is_not_the_servers():
    assert watched("hidden_ids", vram_before={0: 70_800 << 20}).peak_vram_bytes is None


def test_a_partitioned_card_has_memory_and_no_power():
    found = watched("mig")
    assert found.peak_vram_bytes == 70_284 << 20
    assert (found.energy_j, found.metrics()["power_w"]) == (None, None)


# --- the time series, and what it costs -------------------------------------------------------------------------------


def test_gauges_of_the_server_are_sampled_beside():
    with Telemetry(pid=None, gauges=lambda: {"kv_cache_usage": 0.5, "running": 3.0}) as found:
        while not found.rows:
            time.sleep(0.01)
    assert found.metrics()["kv_usage_peak"] == 0.5
    assert found.series()["running"][0] == 3.0
    assert found.series()["t_ns"][0] > 0


def test_a_column_has_no_value_where_nothing_was_asked():
    found = Telemetry(pid=None, rows=[{"t_ns": 1, "a": 1}, {"t_ns": 2, "b": 2}])
    assert found.series() == {"t_ns": [1, 2], "a": [1, None], "b": [None, 2]}


def test_a_source_that_costs_is_asked_less_often():
    asked = []
    source = Paced(ask=lambda: asked.append(1) or {"a": 1}, server_s=lambda: 0.02)
    answers = [source.answer(at) for at in (0.0, 0.3, 1.9, 2.1)]
    assert answers == [{"a": 1}, {}, {}, {"a": 1}]


def test_sampling_costs_less_than_a_hundredth_of_a_core():
    with Telemetry(pid=os.getpid()) as found:
        time.sleep(3)
    assert found.record()["sampling_cores"] < 0.01
