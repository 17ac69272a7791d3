"""What the transformers server tells of its working memory as real requests come, with a played engine."""

from __future__ import annotations

import ctypes
import mmap
import sys
from types import SimpleNamespace

import pytest

from llmopt.serve.shims import hf_memory
from llmopt.serve.shims.hf_engine import Outbox
from llmopt.serve.shims.hf_memory import Activations, resident
from llmopt.serve.shims.hf_news import News

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own pages and peaks are asked on Linux")


class Reserved:
    """A KV cache of 64 MiB that nobody has written to."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 64 * MIB)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def written_bytes(self):
        return resident(self.address, 64 * MIB)

    def fill(self, mib):
        write(self.memory, mib)


def write(memory, mib):
    for place in range(0, mib * MIB, mmap.PAGESIZE):
        memory[place] = 1


class Pipe(list):
    send = list.append


def compute(mib):
    """Hold so much memory and give it back."""
    with mmap.mmap(-1, mib * MIB) as held:
        write(held, mib)


def on(device="cpu", cache=None):
    return Activations(SimpleNamespace(device=SimpleNamespace(type=device)), (cache or Reserved()).written_bytes)


def told(pipe):
    return [what["activation_bytes"] for word, what in pipe if word == "facts"]


def following(activations):
    """A server's outbox after its warm-up, with one request under way."""
    outbox = Outbox(Pipe())
    outbox.warm.set()
    outbox.follow(activations, {"activation_bytes": activations.most()})
    outbox.running.add("r")
    return outbox


def end(outbox, request="r"):
    outbox.deliver([News(request=request, tokens=[1], finished=True)])


@linux
def test_of_reserved_memory_only_what_was_written_is_there():
    cache = Reserved()
    cache.memory[20 * MIB : 23 * MIB] = b"x" * (3 * MIB)
    assert cache.written_bytes() == 3 * MIB


@linux
def test_a_cache_that_fills_is_no_activation():
    cache = Reserved()
    activations = on(cache=cache)
    cache.fill(32)
    compute(8)
    assert activations.most() == pytest.approx(8 * MIB, abs=2 * MIB)


@linux
def test_the_peak_of_a_burst_is_told_with_its_last_answer():
    outbox = following(on())
    compute(16)
    end(outbox)
    assert [word for word, _ in outbox.pipe] == ["tokens", "facts"]
    assert told(outbox.pipe)[0] >= 14 * MIB


@linux
def test_what_did_not_grow_is_told_once():
    outbox = following(on())
    compute(16)
    end(outbox)
    end(outbox)
    assert len(told(outbox.pipe)) == 1


@linux
def test_while_requests_run_it_is_looked_at_once_a_second(monkeypatch):
    outbox = following(on())
    outbox.running.add("other")
    end(outbox)
    compute(16)
    outbox.deliver([News(request="other", tokens=[1], finished=False)])
    assert not told(outbox.pipe)
    monkeypatch.setattr(hf_memory.time, "monotonic", lambda: 1e12)
    outbox.deliver([News(request="other", tokens=[1, 2], finished=False)])
    assert told(outbox.pipe)


def test_a_step_under_way_on_a_gpu_hides_nothing(monkeypatch):
    now = {"allocated": 100, "most": 100}
    cuda = SimpleNamespace(
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: now["allocated"],
        max_memory_allocated=lambda: now["most"],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    activations = on("cuda")
    now |= {"allocated": 150, "most": 160}
    assert activations.most() == 60
