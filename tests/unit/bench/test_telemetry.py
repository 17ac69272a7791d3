import os
import subprocess
import sys

from llmopt.bench.telemetry import Telemetry, tree

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
