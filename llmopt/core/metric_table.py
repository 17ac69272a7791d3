"""The one table of metrics: names, units, formulas, and the functions of one request behind them.

Reports, constraints, ranking and the command reference all read ``METRICS``; ``docs/metrics.md`` is generated from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import sub
from typing import Any, Literal

from llmopt.core.domain import RequestTrace
from llmopt.core.errors import UsageError, nearest

NS = 1e-9


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table. ``key`` is the name in a record: the name with its unit."""

    name: str
    unit: Literal["s", "tps", "rps", "bytes", "share", "joule", "watt", "count", "nats", "price"]
    better: Literal["lower", "higher"]
    formula: str
    kind: Literal["distribution", "scalar"] = "scalar"
    source: Literal["request", "run", "telemetry", "server", "quality", "price"] = "run"
    of_request: Callable[[RequestTrace], float | None] | None = None

    @cached_property
    def key(self) -> str:
        return f"{self.name}_s" if self.unit == "s" and not self.name.endswith("_s") else self.name

    @property
    def worst(self) -> float:
        return math.inf if self.better == "lower" else -math.inf


# --- of one request ---------------------------------------------------------------------------------------------


def since_planned(trace: RequestTrace, stamp: int | None) -> float | None:
    return None if stamp is None else (stamp - trace.planned_ns) * NS


def since_sent(trace: RequestTrace, stamp: int | None) -> float | None:
    return None if stamp is None or trace.sent_ns is None else (stamp - trace.sent_ns) * NS


def ttfv(trace: RequestTrace) -> float | None:
    """Time to the first visible token; only where reasoning tokens were seen."""
    return since_planned(trace, trace.first_visible_ns) if trace.reasoning else None


def tokens_of_first_chunk(trace: RequestTrace) -> float | None:
    """From the usage inside the first token chunk; else the mean over all chunks."""
    if trace.chunk_tokens:
        return trace.chunk_tokens[0]
    if not trace.chunks_ns or trace.output_tokens is None:
        return None
    return trace.output_tokens / len(trace.chunks_ns)


def tpot(trace: RequestTrace) -> float | None:
    """Seconds per output token after the first chunk; ``None`` when everything came in one chunk."""
    first = tokens_of_first_chunk(trace)
    if len(trace.chunks_ns) < 2 or trace.output_tokens is None or first is None:
        return None
    later = trace.output_tokens - first
    return (trace.chunks_ns[-1] - trace.chunks_ns[0]) * NS / later if later > 0 else None


def tps(trace: RequestTrace) -> float | None:
    seconds = tpot(trace)
    return 1 / seconds if seconds else None


def max_stall(trace: RequestTrace) -> float | None:
    longest = max(map(sub, trace.chunks_ns[1:], trace.chunks_ns), default=None)
    return None if longest is None else longest * NS


# --- the table --------------------------------------------------------------------------------------------------


SERVER_TIMES = {
    "ttft": "arrival to first token",
    "itl": "one token to the next",
    "queue": "arrival to the start of computing",
    "prefill": "start of computing to the first token",
    "decode": "first token to the last",
    "e2e": "arrival to the last token",
}

TOLD_WITH_ANSWERS = (
    "; where each answer tells it (llama.cpp's timings): exact, over all answers;"
    " where only seconds are added up: the mean over the requests answered"
)
SERVER_TIMES_BESIDE = {"prefill": TOLD_WITH_ANSWERS, "decode": TOLD_WITH_ANSWERS}

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(name="ttft", unit="s", better="lower", kind="distribution", source="request", formula="first_token − planned",
               of_request=lambda t: since_planned(t, t.first_token_ns)),
        Metric(name="ttft_service", unit="s", better="lower", kind="distribution", source="request", formula="first_token − sent",
               of_request=lambda t: since_sent(t, t.first_token_ns)),
        Metric(name="ttfv", unit="s", better="lower", kind="distribution", source="request", formula="first_visible − planned, with reasoning",
               of_request=ttfv),
        Metric(name="e2e", unit="s", better="lower", kind="distribution", source="request", formula="last_token − planned",
               of_request=lambda t: since_planned(t, t.last_token_ns)),
        Metric(name="e2e_service", unit="s", better="lower", kind="distribution", source="request", formula="last_token − sent",
               of_request=lambda t: since_sent(t, t.last_token_ns)),
        Metric(name="tpot", unit="s", better="lower", kind="distribution", source="request",
               formula="(last_token − first_token) / (output_tokens − tokens in the first token chunk)", of_request=tpot),
        Metric(name="tps", unit="tps", better="higher", kind="distribution", source="request", formula="1 / tpot", of_request=tps),
        Metric(name="max_stall", unit="s", better="lower", kind="distribution", source="request",
               formula="largest gap between token-carrying reads of a request", of_request=max_stall),
        Metric(name="icl", unit="s", better="lower", kind="distribution", formula="gaps between token-carrying reads, pooled"),
        Metric(name="itl", unit="s", better="lower", kind="distribution",
               formula="each gap divided evenly over its chunk's tokens; only where every chunk's count is known"),
        Metric(name="output_tps", unit="tps", better="higher",
               formula="output tokens / s, steady window; tokens that came before a stream failed were produced, and count"),
        Metric(name="total_tps", unit="tps", better="higher",
               formula="output tokens and the prompt tokens of completed requests / s, steady window"),
        Metric(name="requests_per_s", unit="rps", better="higher", formula="requests completed without error / s, steady window"),
        Metric(name="goodput_rps", unit="rps", better="higher",
               formula="completed requests that met every SLO / s, steady window (whole run where there is none)"),
        Metric(name="output_tps_whole", unit="tps", better="higher", formula="output tokens / s, whole run"),
        Metric(name="total_tps_whole", unit="tps", better="higher",
               formula="output tokens and the prompt tokens of completed requests / s, whole run"),
        Metric(name="requests_per_s_whole", unit="rps", better="higher", formula="requests completed without error / s, whole run"),
        Metric(name="goodput_rps_whole", unit="rps", better="higher", formula="completed requests that met every SLO / s, whole run"),
        Metric(name="slo_attainment", unit="share", better="higher",
               formula="requests that met every SLO / planned requests; one without the value (tpot of a single chunk) misses"),
        Metric(name="requests_ok", unit="count", better="higher", formula="requests completed without error"),
        Metric(name="requests_failed", unit="count", better="lower", formula="planned requests that failed or were never sent"),
        Metric(name="dropped", unit="count", better="lower", formula="planned requests that were never sent"),
        Metric(name="error_rate", unit="share", better="lower", formula="failed or never sent / planned requests"),
        Metric(name="cache_hit_rate", unit="share", better="higher",
               formula="prompt tokens from the prefix cache / prompt tokens looked up,"
               " by the server's counters over the run; else by its usage of each answer"),
        *(Metric(name=f"server_{name}", unit="s", better="lower", kind="distribution", source="server",
                 formula=f"{words}, by the server's own histogram over the run: mean = sum / count, percentiles interpolated in its buckets"
                 + SERVER_TIMES_BESIDE.get(name, ""))
          for name, words in SERVER_TIMES.items()),
        Metric(name="preemptions", unit="count", better="lower", source="server",
               formula="requests that the engine put back because its KV cache was full, by its counter over the run"),
        Metric(name="kv_usage_peak", unit="share", better="lower", source="server",
               formula="fullest state of the KV cache among the samples of the run, by the server's gauge"),
        Metric(name="kv_cache_bytes", unit="bytes", better="lower", source="server",
               formula="memory reserved for the KV cache, by the engine's own word"),
        Metric(name="kv_capacity_tokens", unit="count", better="higher", source="server",
               formula="tokens that fit into the KV cache, by the engine's own word"),
        Metric(name="max_concurrency", unit="count", better="higher", source="server",
               formula="sequences of the full context length that fit into the KV cache, by the engine's own word"),
        Metric(name="peak_rss_bytes", unit="bytes", better="lower", source="telemetry",
               formula="peak proportional set size (PSS) of the server's process tree"),
        Metric(name="peak_vram_bytes", unit="bytes", better="lower", source="telemetry", formula="peak GPU memory of the server's process tree"),
        Metric(name="cpu_s", unit="s", better="lower", source="telemetry", formula="CPU seconds of the server's process tree during the run"),
        Metric(name="gpu_util", unit="share", better="higher", source="telemetry",
               formula="mean utilisation of the server's GPUs over the samples of the run"),
        Metric(name="power_w", unit="watt", better="lower", source="telemetry",
               formula="mean power of the server's GPUs, added up, over the samples of the run"),
        Metric(name="energy_j", unit="joule", better="lower", source="telemetry",
               formula="energy of the server's GPUs during the run, by their own counters; else their power over time"),
        Metric(name="energy_per_token_j", unit="joule", better="lower", source="telemetry", formula="energy_j / output tokens of the whole run"),
        Metric(name="load_s", unit="s", better="lower", source="telemetry", formula="process start to the first answered request"),
        Metric(name="weights_bytes", unit="bytes", better="lower", source="quality",
               formula="weights in memory, by the engine's own word; else the bytes of the weight files"),
        Metric(name="kl", unit="nats", better="lower", source="quality", formula="mean KL(base ‖ artifact) of the next-token distribution"),
        Metric(name="kl_p99", unit="nats", better="lower", source="quality", formula="99th percentile of the per-token KL divergence"),
        Metric(name="top1", unit="share", better="higher", source="quality", formula="share of tokens whose most likely successor is unchanged"),
        Metric(name="perplexity", unit="count", better="lower", source="quality", formula="exp(mean negative log-likelihood), held-out text"),
        Metric(name="task_score", unit="count", better="higher", source="quality",
               formula="the score of a task that the artifact was given (llmopt quality --tasks), by the task's own measure"),
        Metric(name="cost", unit="price", better="lower", source="price",
               formula="price per hour / output tokens per hour × 10⁶, at the load that keeps the SLOs: the whole price on output tokens"),
        Metric(name="cost_input", unit="price", better="lower", source="price",
               formula="price per hour / prompt tokens per hour × 10⁶, likewise: the whole price on prompt tokens"),
        Metric(name="cost_blended", unit="price", better="lower", source="price",
               formula="price per hour / prompt and output tokens per hour × 10⁶, likewise"),
    )
}  # fmt: skip

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "min", "max")
OF_A_TASK = "task_score_"  # and the task


def name_of(metric: str, statistic: str | None) -> str:
    """``ttft_p95``, ``task_score_mmlu``: what ``parse_metric`` reads back."""
    return f"{metric}_{statistic}" if statistic else metric


def parse_metric(name: str, *, bare_distribution: bool = False) -> tuple[Metric, str | None]:
    """``ttft_p95`` → (ttft, "p95"); ``output_tps`` → (output_tps, None); ``task_score_mmlu`` → (task_score, "mmlu").

    Raises UsageError for a name that is not in the table, for a score without its task, and for a distribution without
    its statistic unless ``bare_distribution``.
    """
    if name.removeprefix(OF_A_TASK) and name.startswith(OF_A_TASK):
        return METRICS["task_score"], name.removeprefix(OF_A_TASK)
    if name in ("task_score", OF_A_TASK):
        raise UsageError(f"{name!r} is the score of a task", hint="say which: --min-score 'mmlu>=0.6', task_score_mmlu")
    base, _, statistic = name.rpartition("_")
    if statistic in STATISTICS and base in METRICS and METRICS[base].kind == "distribution":
        return METRICS[base], statistic
    metric = METRICS.get(name) or METRICS.get(name.removesuffix("_s"))
    if metric is None:
        raise UsageError(f"unknown metric {name!r}", hint=nearest(name, metric_names()))
    if metric.kind == "distribution" and not bare_distribution:
        raise UsageError(
            f"{name!r} is a distribution",
            hint=f"say which statistic: {metric.name}_p50, {metric.name}_p95, {metric.name}_mean …",
        )
    return metric, None


def metric_names() -> list[str]:
    """Every name that a constraint may use, distributions with their usual percentiles."""
    names = []
    for metric in METRICS.values():
        if metric.name != "task_score":  # its names end with the tasks, which nobody knows beforehand
            spread = metric.kind == "distribution"
            names += [f"{metric.name}_{s}" for s in ("p50", "p95", "p99")] if spread else [metric.name]
    return names


def value_of(metrics: dict[str, Any], metric: Metric, statistic: str | None) -> float | None:
    """A metric's value in a record; ``None`` where it is unknown."""
    value = metrics.get(metric.key)
    if statistic is not None:
        value = value.get(statistic) if isinstance(value, dict) else None
    return None if value is None else float(value)
