"""What the transformers server tells of its requests, in the text format of Prometheus; standard library only.

Names are vLLM's behind ``llmopt_hf:``, so that what is counted here means what is counted there.  Requests that failed or
that their client left are in no histogram.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFIX = "llmopt_hf:"
BOUNDS = [0.0005 * 1.25**n for n in range(58)]  # half a millisecond to three minutes, each a quarter above the last

TIMES = (
    "time_to_first_token",
    "inter_token_latency",
    "request_queue_time",
    "request_prefill_time",
    "request_decode_time",
    "e2e_request_latency",
)
COUNTED = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success")


@dataclass(kw_only=True)
class Times:
    """One request on the clock ``CLOCK_MONOTONIC``: accepted, scheduled (by the engine's own stamp), each read of tokens."""

    prompt_tokens: int
    accepted_s: float
    scheduled_s: float | None = None
    cached: int = 0
    reads: list[tuple[float, int]] = field(default_factory=list)

    def take(self, tokens: int, scheduled_s: float | None, cached: int) -> None:
        """There are ``tokens`` by now, this many of its prompt's came from the prefix cache."""
        self.scheduled_s, self.cached = scheduled_s, cached
        if tokens > (self.reads[-1][1] if self.reads else 0):
            self.reads.append((time.monotonic(), tokens))


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.total += seconds * times

    def lines(self, name: str) -> Iterator[str]:
        yield f"# TYPE {name} histogram"
        below = 0
        for bound, count in zip([*map(repr, BOUNDS), "+Inf"], self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total!r}"
        yield f"{name}_count {below}"


class Counters:
    """Over all requests that were answered whole."""

    def __init__(self) -> None:
        self.histograms = {f"{PREFIX}{name}_seconds": Histogram() for name in TIMES}
        self.counters = {f"{PREFIX}{name}_total": 0 for name in COUNTED}

    def observe(self, name: str, seconds: float, times: int = 1) -> None:
        self.histograms[f"{PREFIX}{name}_seconds"].observe(seconds, times)

    def count(self, name: str, more: int) -> None:
        self.counters[f"{PREFIX}{name}_total"] += more

    def add(self, times: Times) -> None:
        first, last = times.reads[0][0], times.reads[-1][0]
        self.observe("time_to_first_token", first - times.accepted_s)
        self.observe("e2e_request_latency", last - times.accepted_s)
        self.observe("request_decode_time", last - first)
        if times.scheduled_s is not None:
            self.observe("request_queue_time", max(0.0, times.scheduled_s - times.accepted_s))
            self.observe("request_prefill_time", max(0.0, first - times.scheduled_s))
        for (before_s, before), (now_s, now) in zip(times.reads, times.reads[1:], strict=False):
            self.observe("inter_token_latency", (now_s - before_s) / (now - before), now - before)
        self.count("prompt_tokens", times.prompt_tokens)
        self.count("generation_tokens", times.reads[-1][1])
        self.count("prefix_cache_queries", times.prompt_tokens)
        self.count("prefix_cache_hits", times.cached)
        self.count("request_success", 1)

    def text(self, *, running: int) -> str:
        """The page of ``/metrics``; ``running`` counts those that wait for the engine too: it does not tell them apart."""
        lines = [line for name, histogram in self.histograms.items() for line in histogram.lines(name)]
        for name, value in self.counters.items():
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        return "\n".join([*lines, f"# TYPE {PREFIX}num_requests gauge", f"{PREFIX}num_requests {running}", ""])
