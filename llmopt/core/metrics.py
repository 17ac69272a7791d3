"""From the traces of a run to its numbers: windows, rates, distributions and intervals; the table is in ``metric_table``.

Every number is a pure function over request traces, and traces are kept beside every run.  A run may have ten thousand
requests and a million chunks, so the traces become arrays once (``Columns``) and everything is computed on those.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import RequestTrace, Workload
from llmopt.core.limits import meets, parse_slo
from llmopt.core.metric_table import METRICS, NS, STATISTICS, Metric, metric_names, parse_metric, value_of
from llmopt.core.statistics import MIN_SAMPLES, block_interval, distribution, drifts, mser, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MEASURING_REVISION", "METRICS", "STATISTICS", "Columns", "Metric", "Window", "half_width", "metric_names",
    "parse_metric", "rates", "run_intervals", "run_metrics", "steady_window", "tokens_in", "value_of",
    "warm_up_requests", "whole_window",
]  # fmt: skip

# Raised whenever the client or a formula changes what a number means: runs of another revision are measured again.
MEASURING_REVISION = 3  # 3: an SLO of a value that a request does not have is missed by it
MIN_OPEN_COMPLETIONS = 20
MIN_FOR_HALF_WIDTH = 30
FEWEST_BLOCKS, MOST_BLOCKS = 8, 30  # 10 to 30 batches are enough for an interval (Schmeiser 1982)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span of a run, in CLOCK_MONOTONIC nanoseconds; tokens and completions inside it are counted."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * NS


class Columns:
    """The traces of a run as arrays, in the order in which the requests were planned; NaN is unknown."""

    def __init__(self, traces: Sequence[RequestTrace]) -> None:
        import numpy as np

        self.traces = sorted(traces, key=lambda t: t.planned_ns)
        self.ok = np.array([t.ok for t in self.traces], bool)
        self.planned_ns = np.array([t.planned_ns for t in self.traces], np.int64)
        self.chunks = np.array([len(t.chunks_ns) for t in self.traces], np.int64)
        self.last_ns = np.array([t.chunks_ns[-1] if t.chunks_ns else 0 for t in self.traces], np.int64)
        self.done = self.ok & (self.chunks > 0)

    @cached_property
    def chunks_ns(self) -> NDArray[np.int64]:
        """The stamps of all chunks, request after request."""
        import numpy as np

        every = chain.from_iterable(t.chunks_ns for t in self.traces)
        return np.fromiter(every, np.int64, int(self.chunks.sum()))

    @cached_property
    def chunk_tokens(self) -> NDArray[np.float64]:
        """The tokens of all chunks: as counted, else the mean of the request.

        Where a stream failed before the server counted, the mean over the chunks of all the others.
        """
        import numpy as np

        output = self.column([t.output_tokens for t in self.traces])
        known = ~np.isnan(output) & (self.chunks > 0)
        mean = output[known].sum() / self.chunks[known].sum() if known.any() else math.nan
        each = np.full(len(output), mean)
        np.divide(output, self.chunks, out=each, where=known)
        tokens = np.repeat(each, self.chunks)
        counted = np.array([len(t.chunk_tokens) == len(t.chunks_ns) for t in self.traces], bool)
        every = chain.from_iterable(t.chunk_tokens for t, c in zip(self.traces, counted, strict=True) if c)
        tokens[np.repeat(counted, self.chunks)] = np.fromiter(every, np.float64)
        return tokens

    @cached_property
    def tokens_known(self) -> bool:
        return all(t.output_tokens is not None for t in self.traces if t.ok)

    def column(self, values: Sequence[float | None]) -> NDArray[np.float64]:
        import numpy as np

        return np.array([math.nan if v is None else v for v in values], np.float64)

    def of(self, metric: Metric) -> NDArray[np.float64]:
        """A metric of every request: the worst there is for one that failed, NaN where one that succeeded has none."""
        if metric.of_request is None:
            raise ValueError(f"{metric.name} is not a metric of a request")
        return self.column([metric.of_request(t) if t.ok else metric.worst for t in self.traces])

    @cached_property
    def blocks(self) -> int:
        """Into how many blocks of consecutive requests a run is cut for an interval.

        Requests that are in flight together share their luck, so a block is no smaller than the first such set.
        """
        first = self.last_ns[self.done].min() if self.done.any() else 0
        together = int((self.planned_ns < first).sum())
        return max(FEWEST_BLOCKS, min(MOST_BLOCKS, len(self.traces) // max(1, together)))


# --- windows ----------------------------------------------------------------------------------------------------


def whole_window(traces: Sequence[RequestTrace]) -> Window | None:
    ends = [t.closed_ns for t in traces if t.closed_ns is not None]
    return Window(start_ns=min(t.planned_ns for t in traces), end_ns=max(ends)) if ends else None


def warm_up_requests(traces: Sequence[RequestTrace], workload: Workload) -> int | None:
    """How many answered requests, in the order of their plan, belong to the warm-up; ``None``: it never got steady.

    Their latencies decide (``e2e``: in an overloaded open loop the queue may stand before the server or in the client).
    A ramp is never steady, by design.
    """
    return _warm_up(Columns(traces), workload)


def _warm_up(run: Columns, workload: Workload) -> int | None:
    if workload.load == "ramp":
        return None
    latency = run.of(METRICS["e2e"])[run.done]
    cut = mser(latency)
    alike = 1 if workload.open_loop else workload.concurrency
    return None if drifts(latency[cut:], batch=alike) else cut


def steady_window(traces: Sequence[RequestTrace], workload: Workload) -> Window | None:
    """From the end of the warm-up, found in the run itself, to the last moment at which a request was planned.

    It starts no earlier than the first completion: until then a server only fills up, and all slots of a closed loop
    march in step; after the last plan it runs empty.  ``None`` when latencies never got steady, and when less than two
    rounds are left (closed loop: of ``concurrency`` requests, four with the first and the last; else 20 completions).
    """
    return _steady(Columns(traces), workload)


def _steady(run: Columns, workload: Workload) -> Window | None:
    warm_up = _warm_up(run, workload)
    if warm_up is None or not run.done.any():
        return None
    last = run.last_ns[run.done]
    start = max(int(last.min()), int(run.planned_ns[run.done][warm_up]))
    end = int(run.planned_ns.max())
    inside = int(((start < last) & (last <= end)).sum())
    if workload.open_loop:
        enough = inside >= MIN_OPEN_COMPLETIONS
    else:
        enough = len(last) >= 4 * workload.concurrency and inside >= 2 * workload.concurrency
    return Window(start_ns=start, end_ns=end) if enough and end > start else None


# --- rates ------------------------------------------------------------------------------------------------------


def tokens_in(traces: Sequence[RequestTrace], window: Window) -> float:
    """Output tokens whose chunk was read inside the window, those of streams that failed later included."""
    return _tokens_in(Columns(traces), window)


def _tokens_in(run: Columns, window: Window) -> float:
    return float(run.chunk_tokens[(window.start_ns < run.chunks_ns) & (run.chunks_ns <= window.end_ns)].sum())


def rates(traces: Sequence[RequestTrace], window: Window | None) -> dict[str, float | None]:
    """``output_tps``, ``total_tps`` and ``requests_per_s`` over one window."""
    return _rates(Columns(traces), window)


def _rates(run: Columns, window: Window | None, suffix: str = "") -> dict[str, float | None]:
    names = [f"{name}{suffix}" for name in ("output_tps", "total_tps", "requests_per_s")]
    if window is None or window.seconds <= 0:
        return dict.fromkeys(names)
    done = run.done & (window.start_ns < run.last_ns) & (run.last_ns <= window.end_ns)
    prompts = [t.prompt_tokens or t.prompt_tokens_asked for t, inside in zip(run.traces, done, strict=True) if inside]
    output = _tokens_in(run, window) if run.tokens_known else math.nan
    total = output + sum(p or 0 for p in prompts) if all(prompts) else math.nan
    counts = (output, total, len(prompts))
    return dict(zip(names, (None if math.isnan(n) else n / window.seconds for n in counts), strict=True))


def _per_span(run: Columns, window: Window, name: str) -> NDArray[np.float64]:
    """``output_tps`` or ``requests_per_s`` of the spans of equal length that a window is cut into."""
    import numpy as np

    edges = np.linspace(window.start_ns, window.end_ns, run.blocks + 1)
    if name == "output_tps":
        counts, _ = np.histogram(run.chunks_ns, edges, weights=run.chunk_tokens)
    else:
        counts, _ = np.histogram(run.last_ns[run.done], edges)
    return counts / (window.seconds / run.blocks)


# --- a run ------------------------------------------------------------------------------------------------------


def run_metrics(traces: Sequence[RequestTrace], workload: Workload) -> dict[str, Any]:
    """Every request and run metric of a run, by record key, and ``errors``: how many by kind. Traces include failures.

    Raises UsageError for an SLO of the workload that is none.
    """
    run = Columns(traces)
    result: dict[str, Any] = {m.key: _distribution(m, run) for m in METRICS.values() if m.of_request is not None}
    result |= _gaps(run)
    steady, whole = _steady(run, workload), whole_window(traces)
    result |= _rates(run, steady) | _rates(run, whole, "_whole")
    good = [t for t in traces if t.ok]
    errors = Counter(t.error_kind for t in traces if not t.ok)
    result |= {
        "requests_ok": len(good),
        "requests_failed": len(traces) - len(good),
        "errors": dict(errors.most_common()),
        "dropped": errors["dropped"],
        "error_rate": 1 - len(good) / len(traces) if traces else None,
    }
    prompt, cached = sum(t.prompt_tokens or 0 for t in good), [t.cached_tokens for t in good]
    known_cache = [c for c in cached if c is not None]
    result["cache_hit_rate"] = sum(known_cache) / prompt if prompt and len(known_cache) == len(good) else None
    return result | _slo_metrics(run, workload, steady, whole)


def _distribution(metric: Metric, run: Columns) -> dict[str, Any] | None:
    """Over all planned requests: a failed one counts as the worst value there is.

    A request that succeeded but has no such value (``tpot`` of a one-chunk answer) is
    not a failure; when that is so for all of them, the metric is unknown: ``None``.
    """
    import numpy as np

    values = run.of(metric)
    known = values[np.isfinite(values)]
    return distribution(known, missing=int((~run.ok).sum()), worst=metric.worst) if len(known) else None


def gaps(run: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """In seconds, the gaps between the chunks of the good requests, pooled, and those between tokens.

    The second is ``None`` where the tokens of a chunk are not all counted.
    """
    import numpy as np

    good = np.repeat(run.ok, run.chunks)
    owner = np.repeat(np.arange(len(run.traces)), run.chunks)
    inside = good[1:] & (owner[1:] == owner[:-1])
    found = np.diff(run.chunks_ns)[inside] * NS
    if not len(found) or not all(t.chunk_tokens for t in run.traces if t.ok and len(t.chunks_ns) > 1):
        return found, None
    tokens = run.chunk_tokens[1:][inside].astype(np.int64)
    return found, np.repeat(found / np.maximum(tokens, 1), tokens)


def _gaps(run: Columns) -> dict[str, Any]:
    """``icl`` and ``itl`` as distributions."""
    chunks, tokens = gaps(run)
    return {
        "icl_s": distribution(chunks) if len(chunks) else None,
        "itl_s": distribution(tokens) if tokens is not None and len(tokens) else None,
    }


def _met(run: Columns, slo: str) -> NDArray[np.bool_]:
    """Which requests met an SLO; one that succeeded but has no value of its metric (``tpot`` of a one-chunk answer) misses it."""
    import numpy as np

    limit = parse_slo(slo)
    values = run.of(METRICS[limit.metric])
    kept: NDArray[np.bool_] = run.ok & np.array([meets(limit, v) for v in values], bool)  # NaN meets nothing
    return kept


def _slo_metrics(run: Columns, workload: Workload, steady: Window | None, whole: Window | None) -> dict[str, Any]:
    import numpy as np

    names = ("goodput_rps", "goodput_rps_whole", "slo_attainment", "slos_met")
    if not workload.slos:
        return dict.fromkeys(names)
    each = {slo: _met(run, slo) for slo in workload.slos}
    met = np.logical_and.reduce(list(each.values()))
    last = run.last_ns[met & run.done]
    result: dict[str, Any] = dict.fromkeys(names)
    for name, window in (("goodput_rps", steady or whole), ("goodput_rps_whole", whole)):
        if window is not None and window.seconds > 0:
            result[name] = int(((window.start_ns < last) & (last <= window.end_ns)).sum()) / window.seconds
    result["slo_attainment"] = float(met.mean()) if len(met) else None
    result["slos_met"] = {slo: int(kept.sum()) for slo, kept in each.items()}
    return result


# --- intervals --------------------------------------------------------------------------------------------------


def run_intervals(traces: Sequence[RequestTrace], workload: Workload) -> dict[str, Any]:
    """95 % intervals of the headline metrics within one run, bootstrapped over blocks of consecutive requests.

    Requests of one run are correlated, so these are narrower than what repeated runs
    would show; each says ``over: blocks`` and gives way to one over runs.
    """
    import numpy as np

    run = Columns(traces)
    result: dict[str, Any] = {}
    for name, statistic in (("ttft", "p50"), ("ttft", "p95"), ("tps", "p50"), ("e2e", "p50")):
        result[f"{name}_{statistic}"] = _interval(_request_interval(run, METRICS[name], statistic))
    result["error_rate"] = _share(int((~run.ok).sum()), len(run.ok))
    if workload.slos:
        met = np.logical_and.reduce([_met(run, slo) for slo in workload.slos])
        result["slo_attainment"] = _share(int(met.sum()), len(run.ok))
    window = _steady(run, workload)
    if window is not None and run.tokens_known:
        spans = _per_span(run, window, "output_tps")
        result["output_tps"] = _interval(block_interval(spans, None, count=len(spans)))
    return result


def half_width(traces: Sequence[RequestTrace], metric: Metric, statistic: str | None) -> float | None:
    """Half the 95 % interval of a statistic within this run, relative to its value: what ``--until`` waits for.

    ``output_tps`` and ``requests_per_s`` are taken from the first completion to the last plan.  ``None`` below 30
    requests, with too few samples for a percentile, and where too many failed.
    """
    run = Columns(traces)
    if len(run.traces) < MIN_FOR_HALF_WIDTH or not run.done.any():
        return None
    if metric.of_request is not None and statistic is not None:
        value: float | None = (_distribution(metric, run) or {}).get(statistic)
        interval = _request_interval(run, metric, statistic)
    else:
        window = Window(start_ns=int(run.last_ns[run.done].min()), end_ns=int(run.planned_ns.max()))
        if window.seconds <= 0 or not run.tokens_known:
            return None
        spans = _per_span(run, window, metric.name)
        value, interval = float(spans.mean()), block_interval(spans, None, count=len(spans))
    if not value or interval is None:
        return None
    return (interval[1] - interval[0]) / 2 / abs(value)


def _request_interval(run: Columns, metric: Metric, statistic: str) -> tuple[float, float] | None:
    import numpy as np

    values = run.of(metric)
    values = values[~np.isnan(values)]
    percent = None if statistic == "mean" else int(statistic[1:])
    if percent is not None and len(values) < MIN_SAMPLES.get(percent, 1):
        return None
    return block_interval(values, percent, count=run.blocks)


def _interval(bounds: tuple[float, float] | None) -> dict[str, Any] | None:
    return None if bounds is None else {"low": bounds[0], "high": bounds[1], "over": "blocks"}


def _share(count: int, of: int) -> dict[str, Any]:
    low, high = wilson(count, of)
    return {"low": low, "high": high, "over": "requests (Wilson)"}
