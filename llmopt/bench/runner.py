"""One run against one server: prompts, warm-up, load, metrics, verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmopt.bench.client import Endpoint, run_load
from llmopt.bench.prompts import make_prompts
from llmopt.bench.schedule import closed_loop
from llmopt.bench.telemetry import Telemetry
from llmopt.bench.verdict import Evidence, judge
from llmopt.core.domain import RequestTrace, Verdict, Workload
from llmopt.core.errors import ServerError, UsageError
from llmopt.core.metrics import run_intervals, run_metrics

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running server. ``pid`` is its process, where it is ours."""

    base_url: str
    model: str
    pid: int | None = None
    load_s: float | None = None
    usage_per_chunk: bool = False


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one run gave; ``metrics`` by record key."""

    traces: tuple[RequestTrace, ...]
    metrics: dict[str, Any]
    intervals: dict[str, Any]
    verdict: Verdict
    telemetry: dict[str, Any]


def check_workload(workload: Workload) -> None:
    """Raise UsageError for numbers that make no run."""
    for name in ("input_tokens", "output_tokens", "concurrency", "requests"):
        if getattr(workload, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} must be 1 or more, got {getattr(workload, name)}", hint=f"{flag} 32")
    if not workload.request_timeout_s > 0:
        raise UsageError("--request-timeout must be more than 0 seconds", hint="--request-timeout 120")
    if workload.warmup_requests < 0:
        raise UsageError("--warmup-requests must be 0 or more", hint="--warmup-requests 8")


def measure(
    target: Target,
    workload: Workload,
    *,
    salt: str,
    source: str,
    tokenizer: Tokenizer | None,
    warm: bool = False,
    alive: Callable[[], bool] = lambda: True,
    done: Callable[[RequestTrace], None] = lambda _: None,
) -> RunResult:
    """Measure one run; ``salt`` makes its prompts different from those of every other run.

    ``warm`` says that this server was just measured, so that no warm-up is due.

    Raises ServerError when not a single request succeeded: there is nothing to report then.
    """
    check_workload(workload)
    if not warm:
        warm_up(target, workload, salt=salt, source=source, tokenizer=tokenizer)
    prompts = make_prompts(source, workload.requests, workload.input_tokens, f"{workload.seed}-{salt}", tokenizer)
    schedule = closed_loop(
        workload, prompts.texts, target.model, prompt_tokens=prompts.tokens, usage_per_chunk=target.usage_per_chunk
    )
    with Telemetry(pid=target.pid) as telemetry:
        load = run_load(schedule, target.base_url, workload.endpoint, done)
    require_any_success(load.traces, target, workload.endpoint)
    evidence = Evidence(
        traces=load.traces,
        workload=workload,
        loop_lag_p99_s=load.loop_lag_p99_s,
        foreign_gpu_processes=telemetry.foreign_gpu_processes,
        server_survived=alive(),
    )
    memory = {name: getattr(telemetry, name) for name in ("peak_rss_bytes", "peak_vram_bytes", "cpu_s")}
    return RunResult(
        traces=load.traces,
        metrics=run_metrics(load.traces, workload.concurrency) | memory | {"load_s": target.load_s},
        intervals=run_intervals(load.traces, workload.concurrency),
        verdict=judge(evidence),
        telemetry=telemetry.record() | {"loop_lag_p99_s": load.loop_lag_p99_s, "client_cpu_s": load.client_cpu_s},
    )


def warm_up(target: Target, workload: Workload, *, salt: str, source: str, tokenizer: Tokenizer | None) -> None:
    """Untimed requests of the same shape; an engine's first ones compile, allocate and page in."""
    count = workload.warmup_requests
    if not count:
        return
    prompts = make_prompts(source, count, workload.input_tokens, f"warm-up-{salt}", tokenizer)
    shape = replace(workload, requests=count, concurrency=min(workload.concurrency, count))
    schedule = closed_loop(
        shape, prompts.texts, target.model, prompt_tokens=prompts.tokens, usage_per_chunk=target.usage_per_chunk
    )
    require_any_success(run_load(schedule, target.base_url, workload.endpoint).traces, target, workload.endpoint)


def require_any_success(traces: Sequence[RequestTrace], target: Target, endpoint: str) -> None:
    if any(t.ok for t in traces):
        return
    reason = next((t.error for t in traces if t.error), "no answer")
    place = Endpoint.of(target.base_url, endpoint)
    raise ServerError(
        f"all {len(traces)} requests to {place.host}:{place.port}{place.path} failed: {reason}",
        hint="check the address, --model NAME, and that the server streams /completions (or --endpoint chat)",
    )
