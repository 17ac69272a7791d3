"""One run against one server: prompts, warm-up, load, metrics, verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmopt.bench import agreement, calibrate
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.evidence import Evidence
from llmopt.bench.hints import nothing_succeeded
from llmopt.bench.load import LoadResult, Progress, clients, play
from llmopt.bench.memory import memory_split
from llmopt.bench.plan import BY_CALLER
from llmopt.bench.schedule import MOST_PREPARED, Schedule, make_schedule
from llmopt.bench.server_side import GAUGES, TIMES, Page, ServerMetrics, server_of, window
from llmopt.bench.target import Target
from llmopt.bench.telemetry import Telemetry
from llmopt.bench.verdict import judge
from llmopt.core.domain import RequestTrace, Verdict, Workload, stable_hash
from llmopt.core.limits import parse_until
from llmopt.core.metrics import half_width, run_intervals, run_metrics
from llmopt.core.statistics import distribution, percentile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WARM_UP_ROUNDS = 4
WARM_UP_USERS = 32
SETTLED = 0.15  # two rounds of warm-up whose medians differ by less than this: it is over
LEAST_UNTIL = 64  # requests before --until looks at an interval


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What prompts are cut from and counted with; ``salt`` makes them different from those of every other run."""

    salt: str
    source: str
    tokenizer: Tokenizer | None

    def count(self) -> Callable[[str], int] | None:
        if self.tokenizer is None:
            return None
        encode = self.tokenizer.encode
        return lambda text: len(encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one run gave; ``metrics`` by record key. ``stopped`` says why it ended before its end."""

    traces: tuple[RequestTrace, ...]
    metrics: dict[str, Any]
    intervals: dict[str, Any]
    verdict: Verdict
    telemetry: dict[str, Any]
    client: dict[str, Any]
    tokens: dict[str, Any]
    server: dict[str, Any]
    memory: dict[str, Any]
    series: dict[str, list[Any]]
    stopped: str | None = None


def measure(
    target: Target,
    workload: Workload,
    traffic: Traffic,
    *,
    workers: int = 1,
    warm: bool = False,
    alive: Callable[[], bool] = lambda: True,
    progress: Callable[[Progress], None] = lambda _: None,
    warming: Callable[[Progress], None] = lambda _: None,
    stop_when: Callable[[Progress], bool] | None = None,
    ended: Callable[[], None] = lambda: None,
) -> RunResult:
    """Measure one run. ``warm`` says that this server was just measured, so that no warm-up is due.

    ``warming`` is told how far the warm-up is, ``progress`` how far the run.

    Raises ServerError when not a single request succeeded, with what the failures say, and KeyboardInterrupt when it was
    interrupted before one had; later an interrupt ends the run, and the result says so.  ``ended`` is called as the load ends:
    from there on a KeyboardInterrupt would lose what was measured.
    """
    endpoint = Endpoint.of(target.base_url, workload.endpoint, target.headers)
    server = server_of(target.metrics_url, target.metric_names, target.base_url, target.headers)
    with clients(workers) as crew, closing(server) if server is not None else nullcontext():
        pool = None if warm else warm_up(target, endpoint, workload, traffic, warming, stop_when)
        schedule = make_schedule(
            workload, target.model, salt=traffic.salt, source=traffic.source, tokenizer=traffic.tokenizer,
            usage_per_chunk=target.usage_per_chunk, pool=pool, adapter_form=target.adapter_form,
        )  # fmt: skip
        before = server.first() if server is not None else None
        with telemetry_of(target, server) as telemetry:
            load = play(
                crew, schedule, endpoint, count=traffic.count(), progress=progress, enough=enough(workload),
                request_id=f"llmopt-{stable_hash(traffic.salt, 8)}", stop_when=stop_when, ended=ended,
            )  # fmt: skip
        if not any(t.ok for t in load.traces):
            if load.stopped == "interrupted":
                raise KeyboardInterrupt
            raise nothing_succeeded(load.traces, endpoint, target, workload.adapters)
        own_words = server_record(server, before, load.traces)
    return result_of(target, workload, schedule, load, telemetry, own_words, alive())


def telemetry_of(target: Target, server: ServerMetrics | None) -> Telemetry:
    asked = server is not None and any(key in target.metric_names for key in GAUGES)
    return Telemetry(
        pid=target.pid,
        gauges=server.gauges if server is not None and asked else None,
        gauges_s=(lambda: server.cost_s) if server is not None else (lambda: 0.0),
        vram_before=target.vram_before,
    )


def server_record(server: ServerMetrics | None, before: Page | None, traces: Sequence[RequestTrace]) -> dict[str, Any]:
    """What the server counted while these requests ran, beside what the client saw; empty where it does not tell."""
    found = told_with_answers(traces)
    if server is not None:
        answered = sum(t.ok for t in traces)
        after = server.last(before, answered)
        found = window(server.names, before, after, answered) | found
    return found | {"agreement": agreement.compare(traces, found)} if found else {}


def told_with_answers(traces: Sequence[RequestTrace]) -> dict[str, Any]:
    """Times that came with each answer: exact where a page of metrics has sums or buckets. Only where all answers have them."""
    good = [t for t in traces if t.ok]
    every = {
        "server_prefill_s": [t.server_prefill_s for t in good],
        "server_decode_s": [t.server_decode_s for t in good],
    }
    known = {name: [v for v in values if v is not None] for name, values in every.items()}
    return {name: distribution(values) for name, values in known.items() if values and len(values) == len(good)}


def result_of(
    target: Target, workload: Workload, schedule: Schedule, load: LoadResult, telemetry: Telemetry,
    server: dict[str, Any], alive: bool,
) -> RunResult:  # fmt: skip
    client = client_record(workload, load)
    sampled = telemetry.metrics()
    memory = memory_split(
        target.facts(),
        peak_vram_bytes=sampled["peak_vram_bytes"],
        peak_rss_bytes=sampled["peak_rss_bytes"],
        kv_usage_peak=sampled["kv_usage_peak"],
    )
    metrics = run_metrics(load.traces, workload) | sampled | {"load_s": target.load_s}
    narrow = enough(workload)
    evidence = Evidence(
        traces=load.traces,
        workload=workload,
        lateness_s=(client["lateness_s"] or {}).get("p99") or (client["lateness_s"] or {}).get("max") or 0.0,
        lag_s=(client["lag_s"] or {}).get("p99") or (client["lag_s"] or {}).get("max") or 0.0,
        waited_share=client["waited_share"] or 0.0,
        asked_rate=client["asked_rate"],
        achieved_rate=client["achieved_rate"],
        ceiling_share=client["ceiling"]["share"],
        user_stamped_share=load.user_stamped / load.reads if load.reads else 0.0,
        reused_prompts=sum(t.index >= len(schedule.requests) for t in load.traces),
        until_reached=narrow is None or load.enough or narrow(load.traces),
        stopped=load.stopped,
        steal_share=telemetry.steal_share or 0.0,
        throttled=telemetry.throttled,
        foreign_gpu_processes=telemetry.foreign_gpu_processes,
        server_survived=alive,
        server=server,
        agreement=server.get("agreement", {}),
        memory=memory,
        kv_usage_peak=sampled["kv_usage_peak"],
    )
    return RunResult(
        traces=load.traces,
        metrics=metrics | told_by_server(server, memory) | {"energy_per_token_j": per_token(metrics, load.traces)},
        intervals=run_intervals(load.traces, workload),
        verdict=judge(evidence),
        telemetry=telemetry.record(),
        client=client,
        tokens=tokens_record(load.traces) | {"prompts": "exact" if schedule.exact_prompts else "estimated from words"},
        server=server,
        memory=memory,
        series=telemetry.series(),
        stopped=load.stopped,
    )


def told_by_server(server: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by record key: those of the server's own page and log that are known."""
    named = {name: server.get(name) for name in (*(f"{m}_s" for m in TIMES.values()), "preemptions")}
    named |= {
        name: memory[name] for name in ("weights_bytes", "kv_cache_bytes", "kv_capacity_tokens", "max_concurrency")
    }
    hits = server.get("cache_hit_rate")
    return {k: v for k, v in (named | {"cache_hit_rate": hits}).items() if v is not None}


def per_token(metrics: Mapping[str, Any], traces: Sequence[RequestTrace]) -> float | None:
    """Joules for each output token of the whole run."""
    tokens = [t.output_tokens for t in traces if t.chunks_ns]
    energy = metrics["energy_j"]
    return energy / sum(n or 0 for n in tokens) if energy is not None and tokens and all(tokens) else None


# --- what the client knows about itself ---------------------------------------------------------------------------


def client_record(workload: Workload, load: LoadResult) -> dict[str, Any]:
    """``lag_s`` is our stamp minus the kernel's, ``lateness_s`` the send minus the moment it was due.

    ``waited_share``: of the time, in long waits for a processor; ``priority`` is "realtime" or "normal".
    """
    sent = sorted(t.sent_ns for t in load.traces if t.sent_ns is not None)
    planned = sorted(t.planned_ns for t in load.traces)
    return {
        "lag_s": spread(load.lags_s),
        "lateness_s": spread(load.lateness_s),
        "stamps": "user" if load.user_stamped > load.reads / 2 else "kernel",
        "user_stamped_reads": load.user_stamped,
        "waited_share": load.waited_share,
        "priority": "realtime" if load.realtime else "normal",
        "asked_rate": rate_of(planned) if workload.open_loop else None,
        "achieved_rate": rate_of(sent),
        "cpu_s": load.client_cpu_s,
        "cpu_s_per_100k_reads": load.client_cpu_s / load.reads * 1e5 if load.reads else None,
        "seconds": load.seconds,
        "reads": load.reads,
        "workers": load.workers,
        "connections": load.connections,
        "ceiling": calibrate.ceiling_of(
            reads=load.reads, requests=len(sent), seconds=load.seconds, cpu_s=load.client_cpu_s, workers=load.workers
        ),
    }


def rate_of(stamps: Sequence[int]) -> float | None:
    """Arrivals a second between the first and the last."""
    if len(stamps) < 2 or stamps[-1] == stamps[0]:
        return None
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9


def spread(values: Any) -> dict[str, Any] | None:
    """The distribution of a numpy array; ``None`` of an empty one."""
    return distribution(values) if len(values) else None


def tokens_record(traces: Sequence[RequestTrace]) -> dict[str, Any]:
    """Output tokens asked for, counted by the server and counted by us; ``None`` where a count is unknown."""
    server = [t.output_tokens for t in traces if t.output_tokens is not None and not t.tokens_estimated]
    counted = [t.counted_tokens for t in traces if t.counted_tokens is not None]
    estimated = any(t.tokens_estimated for t in traces if t.ok)
    return {
        "requested": sum(t.requested_output_tokens for t in traces),
        "server": sum(server) if server else None,
        "counted": sum(counted) if counted else None,
        "source": "estimated" if estimated else "server" if server else None,
    }


# --- before and after ---------------------------------------------------------------------------------------------


def warm_up(
    target: Target, endpoint: Endpoint, workload: Workload, traffic: Traffic,
    progress: Callable[[Progress], None], stop_when: Callable[[Progress], bool] | None,
) -> int | None:  # fmt: skip
    """Untimed requests of the same shape; an engine's first ones compile, allocate and page in.

    As many as asked for, or rounds of them until two rounds take the same time, or until ``stop_when`` has seen enough, as it
    will of the run too.  Returns how many requests a run that ends by time will need.
    """
    users = min(workload.concurrency, WARM_UP_USERS)
    asked = workload.warmup_requests
    if asked:  # an adapter is loaded with the first request that names it
        asked = max(asked, len(workload.adapters))
    rounds = [asked] if asked is not None else [max(2, users, len(workload.adapters))] * WARM_UP_ROUNDS
    before: float | None = None
    for number, count in enumerate(rounds):
        if not count:
            return None
        shape = replace(
            workload, requests=count, concurrency=min(users, count), load="closed", duration_s=None, turns=1, retries=0
        )
        schedule = make_schedule(
            shape, target.model, salt=f"warm-up-{number}-{traffic.salt}", source=traffic.source,
            tokenizer=traffic.tokenizer, usage_per_chunk=target.usage_per_chunk, adapter_form=target.adapter_form,
        )  # fmt: skip
        with clients() as crew:
            load = play(crew, schedule, endpoint, progress=progress, stop_when=stop_when)
        times = [(t.last_token_ns - t.planned_ns) / 1e9 for t in load.traces if t.ok and t.last_token_ns is not None]
        if load.stopped == "interrupted":
            raise KeyboardInterrupt
        if load.stopped == BY_CALLER:
            return None
        if not times:
            raise nothing_succeeded(load.traces, endpoint, target, workload.adapters)
        now = percentile(times, 50)
        if before is not None and abs(now - before) <= SETTLED * before:
            break
        before = now
    needed = 1.5 * (workload.duration_s or 60.0) * workload.concurrency / max(now, 1e-4)
    return int(min(MOST_PREPARED, max(256, needed)))  # of conversations; after them a run by time begins anew


def enough(workload: Workload) -> Callable[[Sequence[RequestTrace]], bool] | None:
    """Whether the interval that ``--until`` asks for is reached; ``None`` where it asks for nothing."""
    if not workload.until:
        return None
    metric, statistic, wanted = parse_until(workload.until)

    def narrow(traces: Sequence[RequestTrace]) -> bool:
        if len(traces) < LEAST_UNTIL:
            return False
        width = half_width(traces, metric, statistic)
        return width is not None and width <= wanted

    return narrow
