"""``GET /metrics`` of the scripted server: what it did by its own stamps, in the text format and under names like vLLM's.

A request arrives when it has come whole, is first computed when it gets a slot, and has each token when that is written.
With ``?name[]=`` only those samples are rendered, as servers do that are built on prometheus_client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from llmopt.serve.shims.scripted_loop import Request

PREFIX = "scripted:"
BOUNDS_S = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.0,
    5.0,
    10.0,
    60.0,
)
TIMES = ("time_to_first_token", "inter_token_latency", "queue_time", "prefill_time", "decode_time", "e2e_time")
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "preemptions")
NS = 1e-9


@dataclass
class Histogram:
    """Counts by bucket, not added up; the last is of what is above all bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{"+Inf" if bound == float("inf") else bound}",model_name="scripted"}} {float(below)}'
        yield f'{name}_sum{{model_name="scripted"}} {self.total}'
        yield f'{name}_count{{model_name="scripted"}} {float(below)}'


class Metrics:
    """Follows requests; each is looked at again until it has ended, then its numbers are in here and nowhere else.

    ``late_s`` is added to every time to first token that is told, for tests of who notices.
    """

    def __init__(self, *, kv_capacity_tokens: int, late_s: float = 0.0) -> None:
        self.kv_capacity_tokens, self.late_s = kv_capacity_tokens, late_s
        self.times = {name: Histogram() for name in TIMES}
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.open: list[Request] = []  # not counted to their end
        self.active: list[Request] = []  # not ended: looked at often, and so kept short
        self.seen: dict[int, int] = {}  # request number → how many of its writes are counted

    def follow(self, request: Request) -> None:
        self.open.append(request)
        self.active.append(request)

    def count(self) -> None:
        """Take in what has happened since the last time."""
        for request in self.open:
            self.count_tokens(request)
            if request.ended is not None:
                self.count_end(request)
        self.open = [request for request in self.open if request.ended is None]

    def count_tokens(self, request: Request) -> None:
        stamps, done = request.stamps_ns, self.seen.get(request.number, 0)
        if done == 0 and len(stamps):
            start_ns = request.start_ns or request.received_ns
            self.times["time_to_first_token"].observe((stamps[0] - request.received_ns) * NS + self.late_s)
            self.times["queue_time"].observe((start_ns - request.received_ns) * NS)
            self.times["prefill_time"].observe((stamps[0] - start_ns) * NS)
            self.counts["prefix_cache_queries"] += request.timing.prompt_tokens
            self.counts["prefix_cache_hits"] += request.timing.cached_tokens
            self.counts["preemptions"] += request.timing.preemptions
        for place in range(max(1, done), len(stamps)):
            tokens = request.timing.tokens(place)
            for _ in range(tokens):
                self.times["inter_token_latency"].observe((stamps[place] - stamps[place - 1]) * NS / tokens)
        self.seen[request.number] = len(stamps)

    def count_end(self, request: Request) -> None:
        stamps = request.stamps_ns
        self.seen.pop(request.number, None)
        if len(stamps):
            self.times["decode_time"].observe((stamps[-1] - stamps[0]) * NS)
            self.times["e2e_time"].observe((stamps[-1] - request.received_ns) * NS)

    def gauges(self) -> dict[str, float]:
        """All chunks of an answer count as its first."""
        self.active = active = [r for r in self.active if r.ended is None and r.timing.token_counts]
        running = [r for r in active if r.start_ns is not None]
        held = sum(r.timing.prompt_tokens + r.timing.token_counts[0] * len(r.stamps_ns) for r in running)
        return {
            "kv_cache_usage": min(1.0, held / self.kv_capacity_tokens),
            "running": len(running),
            "waiting": len(active) - len(running),
        }

    def page(self, query: str) -> str:
        wanted = set(parse_qs(query).get("name[]", ()))
        return "\n".join([*self.lines(wanted), ""])

    def lines(self, wanted: set[str]) -> Iterator[str]:
        def asked(name: str, suffixes: Sequence[str] = ("",)) -> bool:
            return not wanted or any(f"{PREFIX}{name}{suffix}" in wanted for suffix in suffixes)

        if any(asked(name, ("_sum", "_count", "_bucket")) for name in TIMES) or any(
            asked(name, ("_total",)) for name in COUNTERS
        ):
            self.count()
        for name, value in self.gauges().items():
            if asked(name):
                yield f'{PREFIX}{name}{{model_name="scripted"}} {float(value)}'
        for name, count in self.counts.items():
            if asked(name, ("_total",)):
                yield f"# TYPE {PREFIX}{name}_total counter"
                yield f'{PREFIX}{name}_total{{model_name="scripted"}} {float(count)}'
        for name, histogram in self.times.items():
            if asked(name, ("_sum", "_count", "_bucket")):
                yield f"# TYPE {PREFIX}{name} histogram"
                yield from histogram.lines(PREFIX + name)
