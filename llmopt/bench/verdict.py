"""What a run doubts about itself: a closed list of reasons, each with its remedy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from llmopt.bench.evidence import Evidence
from llmopt.bench.server_doubts import SERVER_DOUBTS
from llmopt.core.domain import Doubt, Verdict
from llmopt.core.metrics import steady_window, warm_up_requests
from llmopt.core.statistics import MIN_SAMPLES, percentile

MAX_LATENESS_S = 0.005
MAX_LAG_S = 0.010
MAX_WAITED_SHARE = 0.01  # what arrives meanwhile is stamped late: one in a hundred is then beyond p99
MORE_ROOM = "--workers 2, a client on its own cores, or fewer --threads for the server"
FIRST = (
    "a client on its own cores, fewer --threads for the server, or real-time priority: sudo prlimit --rtprio=1 --pid $$"
)
MAX_ERROR_RATE = 0.01
MAX_TOKEN_DISAGREEMENT = 0.02
MIN_RATE_SHARE = 0.99
MAX_CEILING_SHARE = 0.5  # of what this client can do: above it the client is part of what is measured
MAX_STEAL_SHARE = 0.05
MAX_WARM_UP_SHARE = 0.25
WARM_UP_FACTOR = 1.1  # slower than the rest by less is no warm-up worth a word


def judge(evidence: Evidence) -> Verdict:
    """Ask every doubt."""
    found = tuple(doubt for ask in DOUBTS if (doubt := ask(evidence)) is not None)
    return Verdict.of(found)


def errors(e: Evidence) -> Doubt | None:
    failed = [t for t in e.traces if not t.ok]
    if len(failed) <= MAX_ERROR_RATE * len(e.traces):
        return None
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(t.error_kind for t in failed).most_common())
    (most, _), *_ = Counter((t.error or "")[:100] for t in failed).most_common(1)
    return Doubt(
        code="errors",
        severity="invalid",
        message=f"{len(failed)} of {len(e.traces)} requests failed ({kinds}); the most frequent: {most}",
        remedy="read the server's log; lower the load; raise --request-timeout",
    )


def ended_early(e: Evidence) -> Doubt | None:
    if e.stopped is None:
        return None
    return Doubt(
        code="ended_early",
        severity="suspect",
        message=f"the run was ended before its end ({e.stopped}): what had finished is in the record",
        remedy="run it again to the end",
    )


def until_not_reached(e: Evidence) -> Doubt | None:
    if e.until_reached:
        return None
    return Doubt(
        code="until_not_reached",
        severity="suspect",
        message=f"the run ended before {e.workload.until} was reached",
        remedy="more --requests, or a longer --duration",
    )


def server_restarted(e: Evidence) -> Doubt | None:
    if e.server_survived and not e.server.get("restarted"):
        return None
    seen = "its own counters began anew" if e.server_survived else "its process is gone"
    return Doubt(
        code="server_restarted",
        severity="invalid",
        message=f"the server died during the run: {seen}",
        remedy="read its log; behind a load balancer, measure one server at a time",
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
    if e.workload.load == "ramp" or not e.good or steady_window(e.traces, e.workload) is not None:
        return None
    if warm_up_requests(e.traces, e.workload) is None and len(e.traces) >= MIN_SAMPLES[90]:
        queue = "the queue grows as long as the load lasts, so " if e.workload.open_loop else ""
        lower = "a lower --rate; --sweep finds the highest that the server keeps up with"
        return Doubt(
            code="never_steady",
            severity="suspect",
            message=f"latency never settled: {queue}the figures depend on the length of the run",
            remedy=lower
            if e.workload.open_loop
            else "more --warmup, more --requests, or a machine with less beside it",
        )
    users = e.workload.concurrency
    wanted = (
        f"--requests {4 * users} or more at --concurrency {users}" if not e.workload.open_loop else "more --requests"
    )
    return Doubt(
        code="no_steady_window",
        severity="suspect",
        message="too few requests after the warm-up for a steady window: throughput is of the whole run only",
        remedy=wanted,
    )


def warm_up(e: Evidence) -> Doubt | None:
    """The run found its own warm-up; when that took a good part of it, percentiles still hold those requests."""
    count = warm_up_requests(e.traces, e.workload)
    if count is None or count <= MAX_WARM_UP_SHARE * len(e.traces) or e.workload.load == "ramp":
        return None
    ordered = sorted(e.good, key=lambda t: t.planned_ns)
    times = [(t.last_token_ns - t.planned_ns) / 1e9 for t in ordered if t.last_token_ns is not None]
    if len(times) <= count or percentile(times[:count], 50) < WARM_UP_FACTOR * percentile(times[count:], 50):
        return None
    return Doubt(
        code="warm_up",
        severity="suspect",
        message=f"the first {count} of {len(e.traces)} requests were still warm-up; percentiles include them",
        remedy="more warm-up (--warmup N), or more --requests",
    )


def output_length(e: Evidence) -> Doubt | None:
    known = [t for t in e.good if t.output_tokens is not None and not t.tokens_estimated]
    off = [
        t for t in known if abs((t.output_tokens or 0) - t.requested_output_tokens) > 0.02 * t.requested_output_tokens
    ]
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
    """The server's counts against the reads, the prompts that were made, and the text that came."""
    many = sum(len(t.chunks_ns) > (t.output_tokens or math.inf) * (1 + MAX_TOKEN_DISAGREEMENT) for t in e.good)
    if many:
        return disagreement(
            f"{many} answers came in more token chunks than the server counts tokens",
            "do not trust this server's usage; compare with another client",
        )
    prompts = [(t.prompt_tokens, t.prompt_tokens_asked) for t in e.good if e.workload.endpoint != "chat"]
    known = [(server, asked) for server, asked in prompts if server is not None and asked]
    off = [abs(a - b) for a, b in known if abs(a - b) > max(1, b * MAX_TOKEN_DISAGREEMENT)]
    if off:
        return disagreement(
            f"{len(off)} of {len(known)} prompts have another length for the server than asked (by up to {max(off)} tokens)",
            "give the model's own tokenizer: --tokenizer DIR",
        )
    both = [
        t for t in e.good if t.output_tokens is not None and t.counted_tokens is not None and not t.tokens_estimated
    ]
    server, ours = sum(t.output_tokens or 0 for t in both), sum(t.counted_tokens or 0 for t in both)
    if abs(server - ours) <= MAX_TOKEN_DISAGREEMENT * server:
        return None
    asked = sum(t.requested_output_tokens for t in both)
    # Text need not encode back into the tokens it came from: where server and request agree, ours is the odd one out.
    agreed = abs(server - asked) <= MAX_TOKEN_DISAGREEMENT * asked
    return disagreement(
        f"the server counts {server} output tokens, their text encodes to {ours}",
        "give the model's own tokenizer: --tokenizer DIR; text that is no language encodes differently",
        "suspect" if agreed else "invalid",
    )


def disagreement(message: str, remedy: str, severity: str = "invalid") -> Doubt:
    return Doubt(code="token_counts", severity=severity, message=message, remedy=remedy)  # type: ignore[arg-type]


def unknown_tokens(e: Evidence) -> Doubt | None:
    unknown = sum(t.output_tokens is None for t in e.good)
    estimated = sum(t.tokens_estimated for t in e.good)
    if not unknown and not estimated:
        return None
    how = "token rates are unknown" if unknown else "they were counted from the text, which is an estimate"
    return Doubt(
        code="token_counts_unknown",
        severity="suspect",
        message=f"the server reported no token counts for {unknown or estimated} answers: {how}",
        remedy="--tokenizer DIR counts them from the text"
        if unknown
        else "use a server that honours stream_options.include_usage",
    )


def not_streamed(e: Evidence) -> Doubt | None:
    whole = [t for t in e.good if len(t.chunks_ns) == 1 and (t.output_tokens or 0) > 4]
    if len(whole) <= 0.5 * len(e.good) or not e.good:
        return None
    return Doubt(
        code="not_streamed",
        severity="suspect",
        message="most answers came in one chunk: TTFT is the time of the whole answer, TPS is unknown",
        remedy="the server buffers its stream; look at its proxy or event loop",
    )


def prefix_cache(e: Evidence) -> Doubt | None:
    """Hits where the workload meant none; several turns and a replayed trace repeat themselves by design.

    Prompts that share their beginning may be answered from a cache as far as that reaches.
    """
    if e.workload.turns > 1 or e.workload.load == "trace":
        return None
    prompt, cached = sum(t.prompt_tokens or 0 for t in e.good), sum(t.cached_tokens or 0 for t in e.good)
    rate = max(cached / prompt if prompt else 0.0, e.server.get("cache_hit_rate") or 0.0)
    shared = e.workload.prefix_tokens / e.workload.input_tokens
    if rate > 0.05 + shared:
        though = f"prompts share {shared:.0%} of theirs" if shared else "every prompt is different"
        return Doubt(
            code="prefix_cache",
            severity="suspect",
            message=f"{rate:.0%} of the prompt tokens came from a prefix cache although {though}",
            remedy="a chat template or system prompt is shared; turn prefix caching off to measure prefill",
        )
    if not e.reused_prompts:
        return None
    return Doubt(
        code="prefix_cache",
        severity="suspect",
        message=f"{e.reused_prompts} prompts were sent more than once: a prefix cache may have answered",
        remedy="fewer --requests, or a shorter --duration",
    )


def client_saturated(e: Evidence) -> Doubt | None:
    """The client is part of what was measured: it sent late, sent less than asked, or is near what it can do."""
    why = why_saturated(e)
    if why is None:
        return None
    waited = e.waited_share > MAX_WAITED_SHARE  # more processes would wait as this one did
    return Doubt(code="client_saturated", severity="suspect", message=why, remedy=FIRST if waited else MORE_ROOM)


def why_saturated(e: Evidence) -> str | None:
    waits = [(t.first_token_ns - t.planned_ns) / 1e9 for t in e.good if t.first_token_ns is not None]
    typical = percentile(waits, 50) if waits else 0.0
    if e.lateness_s > max(MAX_LATENESS_S, 0.1 * typical):
        return f"the client itself sent late, by {e.lateness_s * 1e3:.0f} ms (p99)"
    if e.lag_s > max(MAX_LAG_S, 0.1 * typical):
        return f"the client itself was {e.lag_s * 1e3:.0f} ms (p99) behind the kernel in reading"
    if e.waited_share > MAX_WAITED_SHARE:
        return f"the client itself waited for a processor in {e.waited_share:.0%} of the time"
    capped = e.workload.open_loop and e.workload.max_concurrency
    if e.asked_rate and e.achieved_rate and not capped and e.achieved_rate < MIN_RATE_SHARE * e.asked_rate:
        return f"{e.achieved_rate:.4g} requests/s were sent where {e.asked_rate:.4g} were asked for"
    if e.ceiling_share is not None and e.ceiling_share > MAX_CEILING_SHARE:
        return f"this load is {e.ceiling_share:.0%} of what the client can take on this machine"
    return None


def held_back(e: Evidence) -> Doubt | None:
    capped = e.workload.open_loop and e.workload.max_concurrency
    if not (capped and e.asked_rate and e.achieved_rate) or e.achieved_rate >= MIN_RATE_SHARE * e.asked_rate:
        return None
    return Doubt(
        code="held_back",
        severity="suspect",
        message=f"the cap of {e.workload.max_concurrency} let {e.achieved_rate:.4g} requests/s through where {e.asked_rate:.4g} were asked for; "
        "latencies count the wait",
        remedy="a lower --rate, or a higher --max-concurrency",
    )


def coarse_stamps(e: Evidence) -> Doubt | None:
    if e.user_stamped_share <= 0.01:
        return None
    return Doubt(
        code="coarse_stamps",
        severity="suspect",
        message=f"{e.user_stamped_share:.0%} of the reads have no kernel stamp: the client's own delay is in every latency",
        remedy="measure on Linux with SO_TIMESTAMPING, and do not set the clock during a run",
    )


def machine_noisy(e: Evidence) -> Doubt | None:
    if e.steal_share <= MAX_STEAL_SHARE:
        return None
    return Doubt(
        code="machine_noisy",
        severity="suspect",
        message=f"other guests of this host took {e.steal_share:.0%} of the processor time",
        remedy="measure on a machine of your own, or add repeats",
    )


def throttled(e: Evidence) -> Doubt | None:
    if not e.throttled:
        return None
    return Doubt(
        code="throttled",
        severity="suspect",
        message="the processor or GPU was slowed down by heat or power during the run",
        remedy="cool it, raise the power limit, or wait between runs",
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
    ended_early,
    until_not_reached,
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
    held_back,
    coarse_stamps,
    machine_noisy,
    throttled,
    shared_gpu,
    *SERVER_DOUBTS,
)
