"""Rules of Prometheus: what is recorded, when somebody is called, and how fast the budget of each SLO burns.

Thresholds are figures of the measured run; each alert says in ``threshold`` which one.  An alert exists only where the engine
exports what it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmopt.deploy.plan import Deployment, Slo
from llmopt.deploy.queries import MIB, PROBE_TIMES, Queries, queries, slo_label

# The multi-window, multi-burn-rate alerts of Google's SRE workbook (chapter 5) for a budget of 30 days: burn rate, long and
# short window, who is called.  14.4 takes 2 % of the budget in its hour, 6 takes 5 % in its six, 3 and 1 take 10 %.
BURNS = (
    (14.4, "1h", "5m", "page"),
    (6.0, "6h", "30m", "page"),
    (3.0, "1d", "2h", "ticket"),
    (1.0, "3d", "6h", "ticket"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# A wide budget (half of all requests, at p50) cannot burn 14 times as fast as it should: nine misses of ten is the most
# that is waited for.
MOST_MISSED = 0.9
MOST_ERRORS = 0.01  # as in a run's own verdict
NEARLY_FULL = 0.95
HOTTEST_C = 85  # NVIDIA's data-centre GPUs slow down from about 87 °C
QUANTILES = (0.5, 0.95, 0.99)
TIMES = {"time_to_first_token": "ttft", "time_per_output_token": "tpot", "inter_token_latency": "itl",
         "e2e_time": "e2e", "queue_time": "queue", "prefill_time": "prefill"}  # fmt: skip


def rules(deployment: Deployment, *, jobs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The document of a rule file, or the ``spec`` of a PrometheusRule. ``jobs``: as in ``queries.Queries``."""
    asked = queries(deployment, jobs)
    groups = {
        "recorded": list(recorded(asked)),
        "availability": list(availability(deployment, asked)),
        "load": list(load(deployment, asked)),
        "gpu": list(gpu(deployment, asked)),
        "slo": [rule for slo in deployment.evidence.slos for rule in burns(deployment, asked, slo)],
    }
    return {
        "groups": [
            {"name": f"{deployment.name}-{name}", "rules": [of(deployment, rule) for rule in made]}
            for name, made in groups.items()
            if made
        ]
    }


def of(deployment: Deployment, rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule with the deployment's own label: one Prometheus may watch several."""
    return {**rule, "labels": {"deployment": deployment.name, **rule.get("labels", {})}}


def recorded(asked: Queries) -> Iterator[dict[str, Any]]:
    for key, metric in TIMES.items():
        for share in QUANTILES:
            if expression := asked.quantile(key, share):
                yield record(f"llmopt:{metric}_seconds:p{share * 100:g}", expression)
    for metric in PROBE_TIMES:
        yield record(f"llmopt:probe_{metric}_seconds:p95", asked.probe_quantile(metric, 0.95))
    kv_cache, preemptions = asked.gauge("kv_cache_usage"), asked.rate("preemptions")
    plain = {
        "requests:rate5m": asked.requests(),
        "errors:ratio_rate5m": asked.errors(),
        "probe_failures:ratio_rate5m": asked.probe_failures(),
        "prompt_tokens:rate5m": asked.rate("prompt_tokens"),
        "generation_tokens:rate5m": asked.rate("generation_tokens"),
        "prefix_hits:ratio_rate5m": asked.prefix_hits(),
        "preemptions:rate5m": preemptions,
        "kv_cache_usage:max": kv_cache and f"max({kv_cache})",
        "running:sum": sum_of(asked.gauge("running")),
        "waiting:sum": sum_of(asked.gauge("waiting")),
    }
    for name, expression in plain.items():
        if expression:
            yield record(f"llmopt:{name}", expression)


def availability(deployment: Deployment, asked: Queries) -> Iterator[dict[str, Any]]:
    short = seconds(2 * deployment.wishes.scrape_s)
    if up := asked.up():
        yield alert(
            "InstanceDown", f"{up} == 0", wait=short, severity="ticket" if deployment.replicas > 1 else "page",
            summary="{{ $labels.instance }} does not answer",
            threshold=f"two scrapes of {seconds(deployment.wishes.scrape_s)}",
        )  # fmt: skip
        yield alert(
            "AllInstancesDown", f"sum({up}) == 0 or absent({up})", wait=short, severity="page",
            summary=f"no replica of {deployment.name} answers", threshold=f"none of {deployment.replicas}",
        )  # fmt: skip
    if errors := asked.errors():
        yield alert(
            "HighErrorRatio", f"{errors} > {MOST_ERRORS:g}", wait="5m", severity="page",
            summary="{{ $value | humanizePercentage }} of answers are errors of the server",
            threshold=f"{MOST_ERRORS:.0%}, above which a measured run is not valid either",
        )  # fmt: skip
    yield alert(
        "CanaryFailing", f"{asked.series('llmopt_probe_up', 'canary')} == 0", wait=short, severity="page",
        summary="the last synthetic request failed", threshold="each probe is a real completion through the gateway",
    )  # fmt: skip
    # One of the sixty probes of half an hour is more than 1 %; what a single one failed by is over.
    failed = asked.series("llmopt_probe_requests_total", "canary", outcome="failed")
    yield alert(
        "CanaryErrors", f"{asked.probe_failures('30m')} > {MOST_ERRORS:g} and sum(increase({failed}[30m])) > 1.5",
        wait="5m", severity="ticket",
        summary="{{ $value | humanizePercentage }} of synthetic requests failed within half an hour",
        threshold=f"{MOST_ERRORS:.0%}, above which a measured run is not valid either, and more than one of them",
    )  # fmt: skip
    yield alert(
        "CanarySilent", f"absent({asked.series('llmopt_probe_up', 'canary')})", wait="5m", severity="ticket",
        summary="nobody probes: llmopt watch does not run, or is not scraped", threshold="no sample for five minutes",
    )  # fmt: skip


def load(deployment: Deployment, asked: Queries) -> Iterator[dict[str, Any]]:
    engine, capacity = deployment.engine, deployment.capacity
    concurrency = deployment.evidence.concurrency or engine.max_num_seqs
    if waiting := asked.gauge("waiting"):
        yield alert(
            "QueueGrowing", f"{waiting} > {concurrency:g}", wait="5m", severity="ticket",
            summary="{{ $value }} requests wait at {{ $labels.instance }}",
            threshold=f"{concurrency:g} requests at once is what was measured on one replica",
        )  # fmt: skip
    if usage := asked.gauge("kv_cache_usage"):
        yield alert(
            "KvCacheFull", f"{usage} > {NEARLY_FULL:g}", wait="5m", severity="ticket",
            summary="the KV cache of {{ $labels.instance }} is {{ $value | humanizePercentage }} full",
            threshold="above it new requests wait, or running ones are preempted and computed again",
        )  # fmt: skip
    if preemptions := asked.rate("preemptions", "10m"):
        yield alert(
            "Preemptions", f"{preemptions} > 0", wait="10m", severity="ticket",
            summary="{{ $value | humanize }} requests a second are preempted and computed again",
            threshold="ten minutes without a pause: the KV cache is too small for this load",
        )  # fmt: skip
    requests = asked.requests("10m")
    if requests and capacity.total_rps:
        yield alert(
            "AboveCapacity", f"{requests} > {capacity.total_rps:g}", wait="10m", severity="ticket",
            summary="{{ $value | humanize }} requests a second: more than all replicas were measured to take",
            threshold=f"{capacity.total_rps:.3g} requests/s by {capacity.replicas} replica(s)",
        )  # fmt: skip
    if requests and capacity.after_one_lost_rps and capacity.replicas > 1:
        yield alert(
            "NoSpareReplica", f"{requests} > {capacity.after_one_lost_rps:g}", wait="30m", severity="ticket",
            summary="{{ $value | humanize }} requests a second: the others could not take over from a lost replica",
            threshold=f"{capacity.after_one_lost_rps:.3g} requests/s are left with one replica away",
        )  # fmt: skip


def gpu(deployment: Deployment, asked: Queries) -> Iterator[dict[str, Any]]:
    """Names are those of NVIDIA's dcgm-exporter, which tells memory in MiB."""
    if not deployment.engine.gpus:
        return
    peak = deployment.evidence.peak_vram_bytes
    if peak is not None:
        most = peak / deployment.engine.gpus * 1.1
        yield alert(
            "GpuMemoryAboveMeasured", f"{asked.series('DCGM_FI_DEV_FB_USED', 'gpu')} * {MIB} > {most:.0f}", wait="5m",
            severity="ticket", summary="GPU {{ $labels.gpu }} holds {{ $value | humanize1024 }}B",
            threshold=f"a tenth above the measured peak of {peak / deployment.engine.gpus / 2**30:.1f} GiB a GPU",
        )  # fmt: skip
    yield alert(
        "GpuHot", f"{asked.series('DCGM_FI_DEV_GPU_TEMP', 'gpu')} > {HOTTEST_C}", wait="5m", severity="ticket",
        summary="GPU {{ $labels.gpu }} is at {{ $value }} °C", threshold=f"{HOTTEST_C} °C: it slows itself down soon above",
    )  # fmt: skip
    yield alert(
        "GpuError", f"changes({asked.series('DCGM_FI_DEV_XID_ERRORS', 'gpu')}[10m]) > 0", wait="0s", severity="page",
        summary="GPU {{ $labels.gpu }} reports an XID error", threshold="each one is a fault of driver or hardware",
    )  # fmt: skip


def burns(deployment: Deployment, asked: Queries, slo: Slo) -> Iterator[dict[str, Any]]:
    label, budget, missed = slo_label(slo), 1 - slo.share, asked.missed(slo)
    for window in WINDOWS:
        yield record(ratio_name(window), missed.ratio(window), slo=label)
    for rate, long, short, severity in BURNS:
        limit = min(rate * budget, MOST_MISSED)
        both = (f'{ratio_name(w)}{{deployment="{deployment.name}",slo="{label}"}} > {limit:.6g}' for w in (long, short))
        yield alert(
            "SloBurn", " and ".join(both), wait="2m" if severity == "page" else "15m", severity=severity,
            labels={"slo": label, "window": long},
            summary=f"{literal(slo.text)}: {{{{ $value | humanizePercentage }}}} of requests missed it in the last {long}",
            threshold=f"{limit:.3g} of requests, {limit / budget:.3g} times what {slo.share:.4g} allows;"
            f" measured was {figure(slo)}; counted by {missed.source}",
        )  # fmt: skip


def ratio_name(window: str) -> str:
    return f"llmopt:slo_missed:ratio_rate{window}"


def record(name: str, expression: str, **labels: str) -> dict[str, Any]:
    return {"record": name, "expr": expression, "labels": labels}


def alert(
    name: str, expression: str, *, wait: str, severity: str, summary: str, threshold: str,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity, **(labels or {})},
        "annotations": {"summary": summary, "threshold": threshold},
    }


def figure(slo: Slo) -> str:
    own = " (no SLO was given: twice what was measured)" if slo.chosen_by_us else ""
    return f"{slo.measured:.3g}{own}" if slo.measured is not None else f"unknown{own}"


def literal(text: str) -> str:
    """Words inside a template of Prometheus, which expands ``{{``."""
    return text.replace("{{", '{{ "{{" }}')


def sum_of(expression: str | None) -> str | None:
    return expression and f"sum({expression})"


def seconds(value: float) -> str:
    """A duration of Prometheus, which has whole milliseconds."""
    return f"{value:g}s" if float(value).is_integer() else f"{round(value * 1000)}ms"
