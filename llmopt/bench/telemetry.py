"""Memory, processor, GPU and queues of a server, sampled beside the load on the clock that stamps its requests.

Sampling must not be seen in what is measured: every source is asked again only when its last answer has been paid for
(``Paced``), so that a large server is looked at less often instead of being held up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil

from llmopt.bench.gpu import THROTTLED, GpuReader, GpuSample, open_reader
from llmopt.bench.processes import cpu_seconds, cpu_throttles, host_times, memory_of, resident_of, tree

SAMPLE_S = 0.25
BUDGET = 0.003  # of a core for each of our sources; they are three, and the whole must stay under 1 %
SERVER_BUDGET = 0.01  # of the server's time for telling us
TREE_S = 5.0  # processes come and go rarely, and finding them reads every process of the machine
GROWN, GROWN_S = 1.01, 1.0  # resident memory that is so much larger than at the last PSS, which is as old: look anew
LEAST_OWN_BYTES = 64 << 20  # a GPU whose use grew by less than a CUDA context's size is not the server's


@dataclass(kw_only=True)
class Paced:
    """Asks a source at most every ``SAMPLE_S``, and no more often than its budgets allow.

    ``server_s`` says how long the server took over its last answer; a source of its own pace is ``free``.
    """

    ask: Callable[[], Mapping[str, Any]]
    server_s: Callable[[], float] = lambda: 0.0
    free: bool = False
    due_s: float = 0.0

    def answer(self, now_s: float) -> Mapping[str, Any]:
        if now_s < self.due_s:
            return {}
        before = time.thread_time()
        found = self.ask()
        ours_s = 0.0 if self.free else time.thread_time() - before
        self.due_s = now_s + max(SAMPLE_S * 0.9, ours_s / BUDGET, self.server_s() / SERVER_BUDGET)
        return found


@dataclass(kw_only=True)
class Telemetry:
    """Samples one process tree, its GPUs and ``gauges`` of the server while the ``with`` block runs.

    Everything is ``None`` without a process.  ``vram_before``: bytes in use on each GPU before the server was started.
    Memory is the proportional set size (pages shared by n processes count 1/n each) where the system tells it, else the
    unique set size.  ``rows`` is the time series: CLOCK_MONOTONIC stamps and what was asked at that moment.
    """

    pid: int | None
    gauges: Callable[[], Mapping[str, float]] | None = None
    gauges_s: Callable[[], float] = lambda: 0.0
    reader: Callable[[], GpuReader | None] = open_reader
    vram_before: Mapping[int, int] | None = None
    cpu_s: float | None = None
    steal_share: float | None = None
    sampling_cpu_s: float = 0.0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    gpu: list[tuple[GpuSample, ...]] = field(default_factory=list)
    _own: set[int] = field(default_factory=set)
    _heat: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _tree: list[psutil.Process] = field(default_factory=list)
    _tree_due_s: float = 0.0
    _pss_due_s: float = 0.0
    _pss_then_s: float = 0.0
    _resident_then: int = 0
    _cpu_start: float = 0.0
    _start_ns: int = 0
    _host_start: tuple[float, float] = (0.0, 0.0)
    _throttles: int = 0
    _gpu: GpuReader | None = None

    def __enter__(self) -> Telemetry:
        self._host_start, self._throttles, self._start_ns = host_times(), cpu_throttles(), time.monotonic_ns()
        if self.pid is not None:
            self._gpu = self.reader()
            self._look()
            self._cpu_start = cpu_seconds(self.pid)
        if self.pid is not None or self.gauges is not None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.seconds = (time.monotonic_ns() - self._start_ns) / 1e9
        total, stolen = (b - a for a, b in zip(self._host_start, host_times(), strict=True))
        self.steal_share = stolen / total if total > 0 else None
        self._heat = cpu_throttles() > self._throttles
        if self._thread is not None:
            self._thread.join()
        if self.pid is not None:
            self.cpu_s = max(0.0, cpu_seconds(self.pid) - self._cpu_start)
            self._pss_due_s = 0.0
            self._look()

    # --- sampling ---

    def _look(self) -> None:
        """Before the load and after it, when it disturbs nobody: a short run has a peak too, and energy is a difference."""
        row = {"t_ns": time.monotonic_ns()} | self._ask_memory() | self._ask_gpus()
        if len(row) > 1:
            self.rows.append(row)

    def _run(self) -> None:
        sources = [Paced(ask=self._ask_gauges, server_s=self.gauges_s)] if self.gauges is not None else []
        if self.pid is not None:
            sources += [Paced(ask=self._ask_memory, free=True)]
        if self._gpu is not None:
            sources += [Paced(ask=self._ask_gpus)]
        while not self._stop.wait(SAMPLE_S):
            now_ns = time.monotonic_ns()
            row = {key: value for source in sources for key, value in source.answer(now_ns / 1e9).items()}
            if row:
                self.rows.append({"t_ns": now_ns} | row)
        self.sampling_cpu_s = time.thread_time()

    def _ask_gauges(self) -> Mapping[str, Any]:
        assert self.gauges is not None
        return self.gauges()

    def _ask_memory(self) -> dict[str, Any]:
        assert self.pid is not None
        if time.monotonic() >= self._tree_due_s:
            before = time.thread_time()
            self._tree = tree(self.pid)
            self._tree_due_s = time.monotonic() + max(TREE_S, (time.thread_time() - before) / BUDGET)
        resident = resident_of(self._tree)
        found: dict[str, Any] = {} if resident is None else {"rss_bytes": resident}
        return found | self._ask_pss(resident or 0)

    def _ask_pss(self, resident: int) -> dict[str, int]:
        """The kernel walks every page for it (10 ms for 0.5 GB), so only as often as that may cost, and at a new peak."""
        now_s, before = time.monotonic(), time.thread_time()
        grown = resident > GROWN * self._resident_then and now_s > self._pss_then_s + GROWN_S
        if now_s < self._pss_due_s and not grown:
            return {}
        memory = memory_of(self._tree)
        self._pss_then_s = now_s
        self._pss_due_s = now_s + (time.thread_time() - before) / BUDGET
        self._resident_then = max(self._resident_then, resident)
        return {} if memory is None else {"pss_bytes": memory}

    def _ask_gpus(self) -> dict[str, Any]:
        if self._gpu is None:
            return {}
        samples = self._gpu.read()
        self.gpu.append(samples)
        own = self.own_gpus(samples)
        self._own |= {s.index for s in own}
        mine = [s for s in samples if s.index in self._own]
        return {
            "vram_bytes": self.vram_of(mine) if mine else None,
            "util": mean([s.util for s in mine]),
            "power_w": total([s.power_w for s in mine]),
            "sm_mhz": mean([s.sm_mhz for s in mine]),
            "reasons": sorted({word for s in mine for word in s.reasons}),
        } | {f"energy_j_gpu{s.index}": s.energy_j for s in mine}

    # --- whose GPU it is ---

    def own_gpus(self, samples: Sequence[GpuSample]) -> list[GpuSample]:
        """Those with a process of the tree; where the driver hides our ids, those whose use grew when the server came."""
        ids = self.ids()
        seen = [s for s in samples if any(pid in ids for pid, _ in s.processes or ())]
        if seen or self.vram_before is None:
            return seen
        grown = [s for s in samples if s.used_bytes is not None and s.index in self.vram_before]
        return [s for s in grown if (s.used_bytes or 0) - self.vram_before[s.index] >= LEAST_OWN_BYTES]

    def ids(self) -> set[int]:
        return {process.pid for process in self._tree}

    def vram_of(self, samples: Sequence[GpuSample]) -> int | None:
        """Memory of the tree on its GPUs: by process where the driver says it, else what was added to those before."""
        ids = self.ids()
        by_process = [size for s in samples for pid, size in s.processes or () if pid in ids]
        if by_process and None not in by_process:
            return sum(size or 0 for size in by_process)
        if self.vram_before is None or any(s.used_bytes is None or s.index not in self.vram_before for s in samples):
            return None
        return sum((s.used_bytes or 0) - self.vram_before[s.index] for s in samples)

    @property
    def foreign_gpu_processes(self) -> bool:
        """Whether somebody else computed on a GPU of the server, where the driver shows our own processes."""
        ids = self.ids()
        for samples in self.gpu:
            for sample in samples:
                users = {pid for pid, _ in sample.processes or ()}
                if users & ids and users - ids:
                    return True
        return False

    # --- what follows from the rows ---

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if row.get(name) is not None]

    @property
    def samples(self) -> int:
        return len(self.column("pss_bytes"))

    @property
    def peak_rss_bytes(self) -> int | None:
        return max(self.column("pss_bytes"), default=None)

    @property
    def peak_vram_bytes(self) -> int | None:
        return max(self.column("vram_bytes"), default=None)

    @property
    def throttled(self) -> bool:
        """By heat or by a power brake: the processor, or a GPU of the server."""
        return self._heat or any(THROTTLED.intersection(reasons) for reasons in self.column("reasons"))

    @property
    def energy_j(self) -> float | None:
        """Of the server's GPUs, by the card's own counter; where it has none, by its power over time."""
        counted = total([self.counted_energy_j(index) for index in sorted(self._own)])
        if counted is not None:
            return counted
        points = [(row["t_ns"] / 1e9, row["power_w"]) for row in self.rows if row.get("power_w") is not None]
        if len(points) < 2:
            return None
        return float(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)))

    def counted_energy_j(self, index: int) -> float | None:
        """Of one card, between its first and its last sample: its counter runs from the driver's start."""
        readings = [s.energy_j for samples in self.gpu for s in samples if s.index == index and s.energy_j is not None]
        return readings[-1] - readings[0] if len(readings) > 1 else None

    def memory_of(self, index: int) -> int | None:
        """All that one card has."""
        return next((s.total_bytes for samples in self.gpu for s in samples if s.index == index), None)

    def metrics(self) -> dict[str, Any]:
        """By record key."""
        return {
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_vram_bytes": self.peak_vram_bytes,
            "cpu_s": self.cpu_s,
            "energy_j": self.energy_j,
            "gpu_util": mean(self.column("util")),
            "power_w": mean(self.column("power_w")),
            "kv_usage_peak": max(self.column("kv_cache_usage"), default=None),
        }

    def record(self) -> dict[str, Any]:
        """What else is worth keeping of the samples; the samples themselves are in ``series``."""
        reasons = self.column("reasons")
        return {
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_vram_bytes": self.peak_vram_bytes,
            "cpu_s": self.cpu_s,
            "steal_share": self.steal_share,
            "throttled": self.throttled,
            "samples": self.samples,
            "gpus": sorted(self._own),
            "gpu_memory_bytes": [self.memory_of(index) for index in sorted(self._own)],
            "gpu_source": self._gpu.name if self._gpu is not None else None,
            "driver": self._gpu.driver if self._gpu is not None else None,
            "foreign_gpu_processes": self.foreign_gpu_processes,
            "sm_mhz": mean(self.column("sm_mhz")),
            "clock_reasons": {
                word: sum(word in r for r in reasons) / len(reasons) for word in sorted({w for r in reasons for w in r})
            },
            "peak_running": max(self.column("running"), default=None),
            "peak_waiting": max(self.column("waiting"), default=None),
            "sampling_cores": self.sampling_cpu_s / self.seconds if self.seconds else None,
        }

    def series(self) -> dict[str, list[Any]]:
        """The time series by column; ``None`` where a source was not asked at that moment."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}


def mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def total(values: Sequence[float | None]) -> float | None:
    """``None`` unless all of them are known."""
    return None if not values or None in values else sum(v or 0.0 for v in values)
