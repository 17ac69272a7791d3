"""Other tools' definitions over our traces, so that a disagreement with their numbers can be explained.

The formulas are theirs, read in vLLM 0.32.0, GuideLLM 0.8.1 and AIPerf 0.13.0; the names are those of their result
files (with a dot where theirs nest), times in ms unless they say otherwise.  All three leave failed requests out, count
latencies from the send, and interpolate or weight percentiles where ours are nearest ranks over all planned requests.
What traces cannot say stays ours: these tools stamp each event after it was parsed, we stamp the read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from llmopt.core.domain import RequestTrace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MS = 1e-6  # from nanoseconds
Figures = dict[str, float | None]


def answered(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    return [t for t in traces if t.ok and t.chunks_ns and t.sent_ns is not None]


def ttft_ms(trace: RequestTrace) -> float:
    """First token − send."""
    return (trace.chunks_ns[0] - (trace.sent_ns or 0)) * MS


def e2e_ms(trace: RequestTrace) -> float:
    """Last token − send."""
    return (trace.chunks_ns[-1] - (trace.sent_ns or 0)) * MS


def decode_ms(trace: RequestTrace) -> float:
    """Last token − first token: the same as e2e − TTFT."""
    return (trace.chunks_ns[-1] - trace.chunks_ns[0]) * MS


def gaps_ms(traces: Iterable[RequestTrace]) -> NDArray[np.float64]:
    """Gaps between consecutive chunks, pooled over all requests; the first token has none."""
    import numpy as np

    return np.concatenate([np.zeros(0), *(np.diff(t.chunks_ns) * MS for t in traces)])


def per_second(counts: Sequence[int | None], seconds: float) -> float | None:
    """``None`` where one of the counts is unknown."""
    known = [n for n in counts if n is not None]
    return sum(known) / seconds if len(known) == len(counts) and seconds > 0 else None


# --- vLLM -------------------------------------------------------------------------------------------------------


def vllm(traces: Sequence[RequestTrace], seconds: float) -> Figures:
    """``vllm bench serve``.

    TTFT = first event − send.  TPOT = (e2e − TTFT) / (n − 1) for n > 1, one value a request, however many tokens the
    first event brought.  ITL = every gap between two events, pooled: a gap of a chunk of four tokens is one value.
    E2EL = last event − send.  Percentiles and median interpolate linearly.  Rates are over the whole benchmark.
    Its chat client takes the role-only first event for the first token, and both clients take an event without text
    for a token: where a server sends such events its TTFT is earlier, and it has more and shorter gaps, than here.
    """
    good = answered(traces)
    tokens = [t.output_tokens for t in good]
    tpot = [decode_ms(t) / (n - 1) for t, n in zip(good, tokens, strict=True) if n is not None and n > 1]
    figures: Figures = {"completed": len(good), "failed": len(traces) - len(good)}
    figures["request_throughput"] = per_second([1] * len(good), seconds)
    figures["output_throughput"] = per_second(tokens, seconds)
    figures["total_token_throughput"] = per_second([*tokens, *(t.prompt_tokens for t in good)], seconds)
    for name, values in (
        ("ttft", [ttft_ms(t) for t in good]),
        ("tpot", tpot),
        ("itl", gaps_ms(good)),
        ("e2el", [e2e_ms(t) for t in good]),
    ):
        found = linear(values, (50, 99))
        figures |= {f"mean_{name}_ms": found["mean"], f"median_{name}_ms": found["p50"], f"std_{name}_ms": found["std"]}
        figures[f"p99_{name}_ms"] = found["p99"]
    return figures


def linear(values: Sequence[float] | NDArray[np.float64], percents: Sequence[int]) -> Figures:
    """Mean, population standard deviation, extremes and percentiles, interpolated linearly between ranks."""
    import numpy as np

    sample = np.asarray(values, np.float64)
    names = [f"p{percent}" for percent in percents]
    if not len(sample):
        return dict.fromkeys(("mean", "std", "min", "max", *names))
    found: Figures = {"mean": float(sample.mean()), "std": float(sample.std())}
    found |= {"min": float(sample.min()), "max": float(sample.max())}
    return found | dict(zip(names, map(float, np.percentile(sample, percents)), strict=True))


# --- GuideLLM ---------------------------------------------------------------------------------------------------


def guidellm(traces: Sequence[RequestTrace], seconds: float) -> Figures:
    """GuideLLM, of its successful requests.

    time_to_first_token = first token − send.  time_per_output_token = (last token − send) / n: the first token's wait
    is in it.  inter_token_latency = (last token − first token) / (n − 1), however many tokens came first.  The latter
    two weigh a request by its tokens (n, and n − 1), so a long answer counts more; n is the usage, else the number of
    chunks.  request_latency (s) ends with the response, not with its last token.  Percentiles are nearest ranks of
    the weights.  GuideLLM may cut warm-up and cool-down off a run; here all of it counts.
    """
    good = answered(traces)
    tokens = [t.output_tokens if t.output_tokens is not None else len(t.chunks_ns) for t in good]
    later = [(t, n) for t, n in zip(good, tokens, strict=True) if n > 1]
    spans = [((t.closed_ns or t.chunks_ns[-1]) - (t.sent_ns or 0)) * MS / 1e3 for t in good]
    figures: Figures = {
        "requests_per_second": per_second([1] * len(good), seconds),
        "output_tokens_per_second": per_second(tokens, seconds),
    }
    for name, values, weights in (
        ("request_latency", spans, [1] * len(good)),
        ("time_to_first_token_ms", [ttft_ms(t) for t in good], [1] * len(good)),
        ("time_per_output_token_ms", [e2e_ms(t) / n if n else math.nan for t, n in zip(good, tokens, strict=True)], tokens),
        ("inter_token_latency_ms", [decode_ms(t) / (n - 1) for t, n in later], [n - 1 for _, n in later]),
    ):  # fmt: skip
        figures |= {f"{name}.{key}": value for key, value in weighted(values, weights).items()}
    return figures


def weighted(values: Sequence[float], weights: Sequence[int]) -> Figures:
    """Mean, median and percentiles of values that count as often as they weigh."""
    import numpy as np

    names = ("median", "p90", "p95", "p99")
    kept = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0]
    if not kept:
        return dict.fromkeys(("mean", *names))
    sample, weight = np.array(sorted(kept), np.float64).T
    reached = np.cumsum(weight) / weight.sum()
    at = np.searchsorted(reached, np.array([0.5, 0.9, 0.95, 0.99]) - 1e-12)
    figures: Figures = {"mean": float(sample @ weight / weight.sum())}
    return figures | dict(zip(names, map(float, sample[at]), strict=True))


# --- AIPerf -----------------------------------------------------------------------------------------------------


def aiperf(traces: Sequence[RequestTrace], seconds: float) -> Figures:
    """AIPerf, the successor of genai-perf.

    time_to_first_token = first response with content − send.  request_latency = last response with content − send.
    inter_token_latency = (request_latency − time_to_first_token) / (osl − tokens of the first chunk), osl > 1; where
    the server does not count its chunks, or counts none or all of them in the first, one token is subtracted, as
    genai-perf always did.  output_token_throughput_per_user = 1 / inter_token_latency, one value a request.
    inter_chunk_latency = gaps between chunks, pooled.  Percentiles interpolate linearly; those of its own report for
    inter_chunk_latency come from a sketch and are near, not equal.
    """
    good = answered(traces)
    tokens = [t.output_tokens for t in good]
    itl = [decode_ms(t) / decode_tokens(t) for t in good if t.output_tokens is not None and t.output_tokens > 1]
    figures: Figures = {
        "request_count": len(good),
        "error_request_count": len(traces) - len(good),
        "request_throughput": per_second([1] * len(good), seconds),
        "output_token_throughput": per_second(tokens, seconds),
    }
    for name, values in (
        ("time_to_first_token", [ttft_ms(t) for t in good]),
        ("request_latency", [e2e_ms(t) for t in good]),
        ("inter_token_latency", itl),
        ("output_token_throughput_per_user", [1e3 / v for v in itl if v > 0]),
        ("inter_chunk_latency", gaps_ms(good)),
    ):
        found = linear(values, (50, 90, 95, 99))
        figures |= {f"{name}.{'avg' if key == 'mean' else key}": value for key, value in found.items()}
    return figures


def decode_tokens(trace: RequestTrace) -> int:
    """The tokens after the first chunk."""
    output, first = trace.output_tokens or 0, trace.chunk_tokens[0] if trace.chunk_tokens else 1
    return output - first if 0 < first < output else output - 1


# --- the table: to add one, write its function above and its line here -------------------------------------------

DEFINITIONS: dict[str, tuple[str, Callable[[Sequence[RequestTrace], float], Figures]]] = {
    "vllm": ("vllm bench serve: TPOT = (e2e − ttft) / (n − 1), ITL = pooled chunk gaps, linear percentiles", vllm),
    "guidellm": ("GuideLLM: TPOT = (last − send) / n with the first token's wait in it, weighted by tokens", guidellm),
    "aiperf": ("AIPerf: ITL = (e2e − ttft) / (osl − tokens of the first chunk), linear percentiles", aiperf),
}
