"""The one table of metrics, and the pure functions behind it.

Reports, constraints, ranking and the command reference all read ``METRICS``.  A
metric is a pure function over request traces, and traces are kept beside every run.  ``docs/metrics.md`` is generated from this table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from llmopt.core.domain import RequestTrace
from llmopt.core.errors import UsageError, nearest
from llmopt.core.statistics import blocks, bootstrap, distribution, wilson

NS = 1e-9
# Raised whenever the client or a formula changes what a number means: runs of another revision are measured again.
MEASURING_REVISION = 1
INTERVAL_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span of a run, in CLOCK_MONOTONIC nanoseconds; tokens and completions inside it are counted."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * NS


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table. ``key`` is the name in a record: the name with its unit."""

    name: str
    unit: Literal["s", "tps", "rps", "bytes", "share", "joule", "count", "nats"]
    better: Literal["lower", "higher"]
    formula: str
    kind: Literal["distribution", "scalar"] = "scalar"
    source: Literal["request", "run", "telemetry", "quality"] = "run"
    of_request: Callable[[RequestTrace], float | None] | None = None

    @property
    def key(self) -> str:
        return f"{self.name}_s" if self.unit == "s" and not self.name.endswith("_s") else self.name

    @property
    def worst(self) -> float:
        return math.inf if self.better == "lower" else -math.inf


# --- of one request ---------------------------------------------------------------------------------------------


def _since_planned(trace: RequestTrace, stamp: int | None) -> float | None:
    return None if stamp is None else (stamp - trace.planned_ns) * NS


def _since_sent(trace: RequestTrace, stamp: int | None) -> float | None:
    return None if stamp is None or trace.sent_ns is None else (stamp - trace.sent_ns) * NS


def ttfv(trace: RequestTrace) -> float | None:
    """Time to the first visible token; only where reasoning tokens were seen."""
    if not any(chunk.reasoning for chunk in trace.chunks):
        return None
    return _since_planned(trace, trace.first_visible_ns)


def tokens_of_first_chunk(trace: RequestTrace) -> float | None:
    """From the usage inside the first token chunk; else the mean over all chunks."""
    if not trace.chunks:
        return None
    if trace.chunks[0].tokens is not None:
        return trace.chunks[0].tokens
    return None if trace.output_tokens is None else trace.output_tokens / len(trace.chunks)


def tpot(trace: RequestTrace) -> float | None:
    """Seconds per output token after the first chunk; ``None`` when everything came in one chunk."""
    if len(trace.chunks) < 2 or trace.output_tokens is None:
        return None
    first = tokens_of_first_chunk(trace)
    later = trace.output_tokens - first if first is not None else 0
    return (trace.chunks[-1].at_ns - trace.chunks[0].at_ns) * NS / later if later > 0 else None


def tps(trace: RequestTrace) -> float | None:
    seconds = tpot(trace)
    return 1 / seconds if seconds else None


def chunk_gaps(trace: RequestTrace) -> list[float]:
    """Seconds between consecutive token-carrying reads (``icl``)."""
    return [(b.at_ns - a.at_ns) * NS for a, b in pairwise(trace.chunks)]


def token_gaps(trace: RequestTrace) -> list[float]:
    """``itl``: each gap divided evenly over its chunk's tokens; empty unless every chunk's count is known."""
    if any(chunk.tokens is None for chunk in trace.chunks):
        return []
    gaps: list[float] = []
    for gap, chunk in zip(chunk_gaps(trace), trace.chunks[1:], strict=True):
        gaps += [gap / chunk.tokens] * chunk.tokens if chunk.tokens else []
    return gaps


def max_stall(trace: RequestTrace) -> float | None:
    return max(chunk_gaps(trace), default=None)


# --- of a run ---------------------------------------------------------------------------------------------------


def whole_window(traces: Sequence[RequestTrace]) -> Window | None:
    ends = [t.closed_ns for t in traces if t.closed_ns is not None]
    return Window(start_ns=min(t.planned_ns for t in traces), end_ns=max(ends)) if ends else None


def steady_window(traces: Sequence[RequestTrace], concurrency: int) -> Window | None:
    """From the first completion to the moment the last request was planned (closed loop).

    Before it all slots march in step from a common start; after it slots run empty.
    ``None`` when that leaves less than two rounds of requests.
    """
    ends = [t.last_token_ns for t in traces if t.ok and t.last_token_ns is not None]
    if len(ends) < 4 * concurrency:
        return None
    start, end = min(ends), max(t.planned_ns for t in traces)
    return Window(start_ns=start, end_ns=end) if end > start else None


def tokens_in(traces: Sequence[RequestTrace], window: Window) -> float:
    """Output tokens whose chunk was read inside the window; a chunk of unknown size counts its request's mean."""
    total = 0.0
    for trace in traces:
        if not trace.chunks or trace.output_tokens is None:
            continue
        mean = trace.output_tokens / len(trace.chunks)
        for chunk in trace.chunks:
            if window.start_ns < chunk.at_ns <= window.end_ns:
                total += mean if chunk.tokens is None else chunk.tokens
    return total


def rates(traces: Sequence[RequestTrace], window: Window | None, suffix: str = "") -> dict[str, float | None]:
    """``output_tps``, ``total_tps`` and ``requests_per_s`` over one window."""
    names = [f"{name}{suffix}" for name in ("output_tps", "total_tps", "requests_per_s")]
    if window is None or window.seconds <= 0:
        return dict.fromkeys(names)
    good = [t for t in traces if t.ok]
    done = [t for t in good if t.last_token_ns and window.start_ns < t.last_token_ns <= window.end_ns]
    prompts = [t.prompt_tokens or t.prompt_tokens_asked for t in done]
    output = tokens_in(good, window) if all(t.output_tokens is not None for t in good) else None
    total = output + sum(p or 0 for p in prompts) if output is not None and all(prompts) else None
    counts = (output, total, len(done))
    return dict(zip(names, (None if n is None else n / window.seconds for n in counts), strict=True))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(name="ttft", unit="s", better="lower", kind="distribution", source="request", formula="first_token − planned",
               of_request=lambda t: _since_planned(t, t.first_token_ns)),
        Metric(name="ttft_service", unit="s", better="lower", kind="distribution", source="request", formula="first_token − sent",
               of_request=lambda t: _since_sent(t, t.first_token_ns)),
        Metric(name="ttfv", unit="s", better="lower", kind="distribution", source="request", formula="first_visible − planned, with reasoning",
               of_request=ttfv),
        Metric(name="e2e", unit="s", better="lower", kind="distribution", source="request", formula="last_token − planned",
               of_request=lambda t: _since_planned(t, t.last_token_ns)),
        Metric(name="e2e_service", unit="s", better="lower", kind="distribution", source="request", formula="last_token − sent",
               of_request=lambda t: _since_sent(t, t.last_token_ns)),
        Metric(name="tpot", unit="s", better="lower", kind="distribution", source="request",
               formula="(last_token − first_token) / (output_tokens − tokens in the first token chunk)", of_request=tpot),
        Metric(name="tps", unit="tps", better="higher", kind="distribution", source="request", formula="1 / tpot", of_request=tps),
        Metric(name="max_stall", unit="s", better="lower", kind="distribution", source="request",
               formula="largest gap between token-carrying reads of a request", of_request=max_stall),
        Metric(name="icl", unit="s", better="lower", kind="distribution", formula="gaps between token-carrying reads, pooled"),
        Metric(name="itl", unit="s", better="lower", kind="distribution",
               formula="each gap divided evenly over its chunk's tokens; only where every chunk's count is known"),
        Metric(name="output_tps", unit="tps", better="higher", formula="output tokens / s, steady window"),
        Metric(name="total_tps", unit="tps", better="higher", formula="all tokens / s, steady window"),
        Metric(name="requests_per_s", unit="rps", better="higher", formula="completed requests / s, steady window"),
        Metric(name="output_tps_whole", unit="tps", better="higher", formula="output tokens / s, whole run"),
        Metric(name="total_tps_whole", unit="tps", better="higher", formula="all tokens / s, whole run"),
        Metric(name="requests_per_s_whole", unit="rps", better="higher", formula="completed requests / s, whole run"),
        Metric(name="error_rate", unit="share", better="lower", formula="failed or never sent / planned requests"),
        Metric(name="cache_hit_rate", unit="share", better="higher", formula="cached prompt tokens / prompt tokens, as the server reports them"),
        Metric(name="peak_rss_bytes", unit="bytes", better="lower", source="telemetry",
               formula="peak proportional set size (PSS) of the server's process tree"),
        Metric(name="peak_vram_bytes", unit="bytes", better="lower", source="telemetry", formula="peak GPU memory of the server's process tree"),
        Metric(name="cpu_s", unit="s", better="lower", source="telemetry", formula="CPU seconds of the server's process tree during the run"),
        Metric(name="load_s", unit="s", better="lower", source="telemetry", formula="process start to the first answered request"),
        Metric(name="weights_bytes", unit="bytes", better="lower", source="quality", formula="bytes of the weight files"),
        Metric(name="kl", unit="nats", better="lower", source="quality", formula="mean KL(base ‖ artifact) of the next-token distribution"),
        Metric(name="kl_p99", unit="nats", better="lower", source="quality", formula="99th percentile of the per-token KL divergence"),
        Metric(name="top1", unit="share", better="higher", source="quality", formula="share of tokens whose most likely successor is unchanged"),
        Metric(name="perplexity", unit="count", better="lower", source="quality", formula="exp(mean negative log-likelihood), held-out text"),
    )
}  # fmt: skip

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "min", "max")


def parse_metric(name: str) -> tuple[Metric, str | None]:
    """``ttft_p95`` → (ttft, "p95"); ``output_tps`` → (output_tps, None).

    Raises UsageError for a name that is not in the table, and for a distribution without its statistic.
    """
    base, _, statistic = name.rpartition("_")
    if statistic in STATISTICS and base in METRICS and METRICS[base].kind == "distribution":
        return METRICS[base], statistic
    metric = METRICS.get(name) or METRICS.get(name.removesuffix("_s"))
    if metric is None:
        raise UsageError(f"unknown metric {name!r}", hint=nearest(name, metric_names()))
    if metric.kind == "distribution":
        raise UsageError(
            f"{name!r} is a distribution",
            hint=f"say which statistic: {metric.name}_p50, {metric.name}_p95, {metric.name}_mean …",
        )
    return metric, None


def metric_names() -> list[str]:
    """Every name that a constraint may use, distributions with their usual percentiles."""
    names = []
    for metric in METRICS.values():
        names += (
            [f"{metric.name}_{s}" for s in ("p50", "p95", "p99")] if metric.kind == "distribution" else [metric.name]
        )
    return names


def value_of(metrics: dict[str, Any], metric: Metric, statistic: str | None) -> float | None:
    """A metric's value in a record; ``None`` where it is unknown."""
    value = metrics.get(metric.key)
    if statistic is not None:
        value = value.get(statistic) if isinstance(value, dict) else None
    return None if value is None else float(value)


def run_metrics(traces: Sequence[RequestTrace], concurrency: int) -> dict[str, Any]:
    """Every request and run metric of a run, by record key; traces include the requests that failed."""
    result: dict[str, Any] = {}
    for metric in METRICS.values():
        if metric.of_request is not None:
            result[metric.key] = request_distribution(metric, traces)
    good = [t for t in traces if t.ok]
    gaps = [gap for t in good for gap in chunk_gaps(t)]
    known = bool(good) and all(c.tokens is not None for t in good for c in t.chunks)
    result["icl_s"] = distribution(gaps) if gaps else None
    result["itl_s"] = distribution([g for t in good for g in token_gaps(t)]) if known and gaps else None
    result |= rates(traces, steady_window(traces, concurrency))
    result |= rates(traces, whole_window(traces), "_whole")
    result["error_rate"] = 1 - len(good) / len(traces) if traces else None
    prompt, cached = sum(t.prompt_tokens or 0 for t in good), [t.cached_tokens for t in good]
    known_cache = [c for c in cached if c is not None]
    result["cache_hit_rate"] = sum(known_cache) / prompt if prompt and len(known_cache) == len(good) else None
    return result


def request_distribution(metric: Metric, traces: Sequence[RequestTrace]) -> dict[str, Any] | None:
    """Over all planned requests: a failed one counts as the worst value there is.

    A request that succeeded but has no such value (``tpot`` of a one-chunk answer) is
    not a failure; when that is so for all of them, the metric is unknown: ``None``.
    """
    if metric.of_request is None:
        raise ValueError(f"{metric.name} is not a metric of a request")
    values = [v for t in traces if t.ok and (v := metric.of_request(t)) is not None]
    if not values:
        return None
    return distribution(values, missing=sum(not t.ok for t in traces), worst=metric.worst)


def run_intervals(traces: Sequence[RequestTrace], concurrency: int) -> dict[str, Any]:
    """95 % intervals of the headline metrics within one run, bootstrapped over blocks of consecutive requests.

    Requests of one run are correlated, so these are narrower than what repeated runs
    would show; each says ``over: blocks`` and gives way to one over runs.
    """
    ordered = sorted(traces, key=lambda t: t.planned_ns)
    result: dict[str, Any] = {}
    for name, statistic in (("ttft", "p50"), ("ttft", "p95"), ("tps", "p50"), ("e2e", "p50")):
        metric = METRICS[name]

        def of(
            parts: Sequence[Sequence[RequestTrace]], metric: Metric = metric, statistic: str = statistic
        ) -> float | None:
            row = request_distribution(metric, [t for part in parts for t in part])
            return None if row is None else row[statistic]

        result[f"{name}_{statistic}"] = _interval(bootstrap(blocks(ordered, INTERVAL_BLOCKS), of, resamples=300))
    low, high = wilson(sum(not t.ok for t in traces), len(traces))
    result["error_rate"] = {"low": low, "high": high, "over": "requests (Wilson)"}
    window = steady_window(traces, concurrency)
    if window is not None:
        edges = range(window.start_ns, window.end_ns + 1, max(1, (window.end_ns - window.start_ns) // INTERVAL_BLOCKS))
        spans = [Window(start_ns=a, end_ns=b) for a, b in pairwise(edges)]
        per_span = [rate for span in spans if (rate := rates(traces, span)["output_tps"]) is not None]
        result["output_tps"] = _interval(bootstrap(per_span, lambda rows: sum(rows) / len(rows)))
    return result


def _interval(bounds: tuple[float, float] | None) -> dict[str, Any] | None:
    return None if bounds is None else {"low": bounds[0], "high": bounds[1], "over": "blocks"}
