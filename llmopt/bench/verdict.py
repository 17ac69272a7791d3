"""What a run doubts about itself: a closed list of reasons, each with its remedy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmopt.core.domain import Doubt, RequestTrace, Verdict, Workload
from llmopt.core.metrics import steady_window
from llmopt.core.statistics import MIN_SAMPLES, percentile

MAX_LOOP_LAG_S = 0.005
MAX_ERROR_RATE = 0.01
MAX_TOKEN_DISAGREEMENT = 0.02


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that a doubt may look at."""

    traces: Sequence[RequestTrace]
    workload: Workload
    loop_lag_p99_s: float
    foreign_gpu_processes: bool = False
    server_survived: bool = True
    good: Sequence[RequestTrace] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "good", [t for t in self.traces if t.ok])


def judge(evidence: Evidence) -> Verdict:
    """Ask every doubt."""
    found = tuple(doubt for ask in DOUBTS if (doubt := ask(evidence)) is not None)
    return Verdict.of(found)


def errors(e: Evidence) -> Doubt | None:
    failed = [t for t in e.traces if not t.ok]
    if len(failed) <= MAX_ERROR_RATE * len(e.traces):
        return None
    (most, count), *_ = Counter((t.error or "")[:100] for t in failed).most_common(1)
    return Doubt(
        code="errors",
        severity="invalid",
        message=f"{len(failed)} of {len(e.traces)} requests failed; {count} with: {most}",
        remedy="read the server's log; lower --concurrency; raise --request-timeout",
    )


def server_restarted(e: Evidence) -> Doubt | None:
    if e.server_survived:
        return None
    return Doubt(
        code="server_restarted", severity="invalid", message="the server died during the run", remedy="read its log"
    )


def too_few_samples(e: Evidence) -> Doubt | None:
    if len(e.traces) >= MIN_SAMPLES[95]:
        return None
    return Doubt(
        code="too_few_samples",
        severity="suspect",
        message=f"{len(e.traces)} requests: p95 needs {MIN_SAMPLES[95]} and is not printed",
        remedy=f"--requests {MIN_SAMPLES[95] + 5} or more",
    )


def no_steady_window(e: Evidence) -> Doubt | None:
    if steady_window(e.traces, e.workload.concurrency) is not None:
        return None
    return Doubt(
        code="no_steady_window",
        severity="suspect",
        message="too few rounds of requests for a steady window: throughput is of the whole run only",
        remedy=f"--requests {4 * e.workload.concurrency} or more at --concurrency {e.workload.concurrency}",
    )


def warm_up(e: Evidence) -> Doubt | None:
    """The first quarter much slower than the rest: what is timed is still the warm-up."""
    times = [(t.last_token_ns - t.planned_ns) / 1e9 for t in e.good if t.last_token_ns is not None]
    if len(times) < 16:
        return None
    quarter = len(times) // 4
    first, rest = percentile(times[:quarter], 50), percentile(times[quarter:], 50)
    if first < 1.5 * rest:
        return None
    return Doubt(
        code="warm_up",
        severity="suspect",
        message=f"the first quarter took {first / rest:.1f}× as long per request as the rest",
        remedy="--warmup-requests with a larger number",
    )


def output_length(e: Evidence) -> Doubt | None:
    known = [t for t in e.good if t.output_tokens is not None]
    off = [t for t in known if abs(t.output_tokens - t.requested_output_tokens) > 0.02 * t.requested_output_tokens]  # type: ignore[operator]
    if len(off) <= 0.02 * len(e.good):
        return None
    stopped = sum(t.finish_reason == "stop" for t in off)
    return Doubt(
        code="output_length",
        severity="suspect",
        message=f"{len(off)} of {len(e.good)} answers have another length than asked ({stopped} ended by themselves)",
        remedy="this server does not honour ignore_eos and max_tokens; compare only runs with the same output lengths",
    )


def token_counts(e: Evidence) -> Doubt | None:
    """The server's prompt count against ours (text completions only: a template adds tokens), its output count against our reads."""
    many = sum(len(t.chunks) > (t.output_tokens or math.inf) * (1 + MAX_TOKEN_DISAGREEMENT) for t in e.good)
    if many:
        return Doubt(
            code="token_counts",
            severity="invalid",
            message=f"{many} answers came in more token chunks than the server counts tokens",
            remedy="do not trust this server's usage; compare with another client",
        )
    if e.workload.endpoint == "chat":
        return None
    pairs = [(t.prompt_tokens, t.prompt_tokens_asked) for t in e.good]
    known = [(server, asked) for server, asked in pairs if server is not None and asked]
    off = [
        abs(server - asked) for server, asked in known if abs(server - asked) > max(1, asked * MAX_TOKEN_DISAGREEMENT)
    ]
    if not off:
        return None
    return Doubt(
        code="token_counts",
        severity="invalid",
        message=f"{len(off)} of {len(known)} prompts have another length for the server than asked (by up to {max(off)} tokens)",
        remedy="give the model's own tokenizer: --tokenizer DIR",
    )


def unknown_tokens(e: Evidence) -> Doubt | None:
    unknown = sum(t.output_tokens is None for t in e.good)
    if not unknown:
        return None
    return Doubt(
        code="token_counts_unknown",
        severity="suspect",
        message=f"the server reported no token counts for {unknown} answers: token rates are unknown",
        remedy="use a server that honours stream_options.include_usage",
    )


def not_streamed(e: Evidence) -> Doubt | None:
    whole = [t for t in e.good if len(t.chunks) == 1 and (t.output_tokens or 0) > 4]
    if len(whole) <= 0.5 * len(e.good) or not e.good:
        return None
    return Doubt(
        code="not_streamed",
        severity="suspect",
        message="most answers came in one chunk: TTFT is the time of the whole answer, TPS is unknown",
        remedy="the server buffers its stream; look at its proxy or event loop",
    )


def prefix_cache(e: Evidence) -> Doubt | None:
    prompt, cached = sum(t.prompt_tokens or 0 for t in e.good), sum(t.cached_tokens or 0 for t in e.good)
    if not prompt or cached <= 0.05 * prompt:
        return None
    return Doubt(
        code="prefix_cache",
        severity="suspect",
        message=f"{cached / prompt:.0%} of the prompt tokens came from a prefix cache although every prompt is different",
        remedy="a chat template or system prompt is shared; turn prefix caching off to measure prefill",
    )


def client_saturated(e: Evidence) -> Doubt | None:
    waits = [(t.first_token_ns - t.planned_ns) / 1e9 for t in e.good if t.first_token_ns is not None]
    typical = percentile(waits, 50) if waits else 0.0
    if e.loop_lag_p99_s <= max(MAX_LOOP_LAG_S, 0.1 * typical):
        return None
    return Doubt(
        code="client_saturated",
        severity="suspect",
        message=f"the client itself was late: its event loop lagged {e.loop_lag_p99_s * 1e3:.0f} ms (p99)",
        remedy="run the client on its own cores, or give the server fewer: --threads",
    )


def shared_gpu(e: Evidence) -> Doubt | None:
    if not e.foreign_gpu_processes:
        return None
    return Doubt(
        code="shared_gpu",
        severity="suspect",
        message="another process used the same GPU",
        remedy="end it, or wait for it",
    )


DOUBTS: tuple[Callable[[Evidence], Doubt | None], ...] = (
    errors,
    server_restarted,
    too_few_samples,
    no_steady_window,
    warm_up,
    output_length,
    token_counts,
    unknown_tokens,
    not_streamed,
    prefix_cache,
    client_saturated,
    shared_gpu,
)
