"""A dashboard of what this engine exports, the SLOs as lines in it, and what Grafana reads when it starts (provisioning)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.deploy.documents import json_text, yaml_text
from llmopt.deploy.plan import Deployment, File, Slo
from llmopt.deploy.queries import MIB, OF_SLO, PROBE_TIMES, Queries, queries, slo_label

SOURCE = {"type": "prometheus", "uid": "prometheus"}
DASHBOARDS = "/etc/grafana/dashboards"  # where the folder of dashboards is mounted
WIDTH, HEIGHT = 8, 8  # of a panel; Grafana's page is 24 wide
SCHEMA = 39  # of Grafana 11; newer ones bring it up to date when they read it


@dataclass(frozen=True, kw_only=True)
class Panel:
    """``lines``: legend → expression; ``limit``: a value at which a line is drawn, in the panel's unit (Grafana's names)."""

    title: str
    lines: dict[str, str]
    unit: str = "short"
    limit: float | None = None
    words: str = ""
    single: bool = False


def dashboard(deployment: Deployment, *, jobs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What Grafana imports, or finds in the folder that ``provisioning`` names. ``jobs``: as in ``queries.Queries``."""
    return {
        "uid": deployment.name,
        "title": f"{deployment.name}: {deployment.engine.title}",
        "tags": ["llmopt"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": []},
        "panels": [drawn(panel, number) for number, panel in enumerate(panels(deployment, jobs))],
    }


def expressions(deployment: Deployment) -> list[str]:
    """Every query of the dashboard."""
    return [expression for panel in panels(deployment) for expression in panel.lines.values()]


def panels(deployment: Deployment, jobs: Mapping[str, str] | None = None) -> list[Panel]:
    """Those of which this engine exports at least one line."""
    asked = queries(deployment, jobs)
    made = [
        *overview(deployment, asked),
        *latencies(deployment, asked),
        *engine(deployment, asked),
        *gpu(deployment, asked),
    ]
    return [panel for panel in made if panel.lines]


def overview(deployment: Deployment, asked: Queries) -> Iterator[Panel]:
    up = asked.up()
    yield Panel(title="Replicas that answer", lines=there({"up": up and f"sum({up})"}), single=True)
    yield Panel(
        title="Canary", lines={"up": f"min({asked.series('llmopt_probe_up', 'canary')})"}, single=True,
        words="1: the last synthetic request was answered",
    )  # fmt: skip
    yield Panel(
        title="Failures", unit="percentunit", limit=0.01,
        lines=there({"of requests": asked.errors(), "of probes": asked.probe_failures()}),
    )  # fmt: skip


def latencies(deployment: Deployment, asked: Queries) -> Iterator[Panel]:
    """One panel for each SLO, and one that shows how often each is missed; then the times that have none."""
    slos = deployment.evidence.slos
    for slo in slos:
        lines = {f"{slo.metric}, engine": asked.quantile(OF_SLO.get(slo.metric, ""), slo.share)}
        if slo.metric in PROBE_TIMES:
            lines[f"{slo.metric}, canary"] = asked.probe_quantile(slo.metric, slo.share)
        yield Panel(title=f"SLO {slo.text}", unit="s", limit=slo.bound, lines=there(lines), words=measured(slo))
    for slo in slos:
        missed = asked.missed(slo)
        yield Panel(
            title=f"Missed {slo_label(slo)}", unit="percentunit", limit=1 - slo.share,
            lines={window: missed.ratio(window) for window in ("5m", "1h")}, words=f"counted by {missed.source}",
        )  # fmt: skip
    for title, key in (("Queue", "queue_time"), ("Prefill", "prefill_time"), ("Between tokens", "inter_token_latency")):
        lines = {f"p{share * 100:g}": asked.quantile(key, share) for share in (0.5, 0.95)}
        yield Panel(title=title, unit="s", lines=there(lines))


def measured(slo: Slo) -> str:
    words = "no SLO was given: twice what was measured" if slo.chosen_by_us else ""
    return words if slo.measured is None else f"measured: {slo.measured:.3g} {words}".strip()


def engine(deployment: Deployment, asked: Queries) -> Iterator[Panel]:
    capacity = deployment.capacity
    yield Panel(
        title="Requests a second", unit="reqps", limit=capacity.total_rps, lines=there({"answered": asked.requests()}),
        words="the line: what all replicas were measured to take",
    )  # fmt: skip
    yield Panel(
        title="Running and waiting",
        lines=there({"{{instance}} running": asked.gauge("running"), "{{instance}} waiting": asked.gauge("waiting")}),
        words=f"measured with {deployment.evidence.load}",
    )
    yield Panel(
        title="Tokens a second",
        lines=there({"read": asked.rate("prompt_tokens"), "written": asked.rate("generation_tokens")}),
    )
    yield Panel(title="Tokens a second of decoding", lines=there({"": asked.decode_speed()}))
    yield Panel(
        title="KV cache", unit="percentunit", limit=0.95, lines=there({"{{instance}}": asked.gauge("kv_cache_usage")})
    )
    yield Panel(
        title="Prompt tokens out of the prefix cache", unit="percentunit", lines=there({"hits": asked.prefix_hits()})
    )
    yield Panel(title="Preemptions a second", lines=there({"preemptions": asked.rate("preemptions")}))


def gpu(deployment: Deployment, asked: Queries) -> Iterator[Panel]:
    """Names of NVIDIA's dcgm-exporter."""
    if not deployment.engine.gpus:
        return
    peak = deployment.evidence.peak_vram_bytes
    yield Panel(
        title="GPU memory", unit="bytes", limit=peak and peak / deployment.engine.gpus,
        lines={"GPU {{gpu}}": f"{asked.series('DCGM_FI_DEV_FB_USED', 'gpu')} * {MIB}"}, words="the line: the measured peak",
    )  # fmt: skip
    yield Panel(
        title="GPU temperature", unit="celsius", lines={"GPU {{gpu}}": asked.series("DCGM_FI_DEV_GPU_TEMP", "gpu")}
    )
    yield Panel(title="GPU use", unit="percent", lines={"GPU {{gpu}}": asked.series("DCGM_FI_DEV_GPU_UTIL", "gpu")})


def there(lines: dict[str, str | None]) -> dict[str, str]:
    return {legend: expression for legend, expression in lines.items() if expression is not None}


def drawn(panel: Panel, number: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if not panel.single:
        style = {"mode": "dashed" if panel.limit else "off"}
        # Without this the line is outside the picture while all is well, and nobody sees how far away it is.
        defaults |= {"custom": {"thresholdsStyle": style, "lineWidth": 2, "showPoints": "never"}, "min": 0}
        if panel.limit:
            defaults["custom"]["axisSoftMax"] = panel.limit * 1.1
    return {
        "id": number + 1,
        "type": "stat" if panel.single else "timeseries",
        "title": panel.title,
        "description": panel.words,
        "datasource": SOURCE,
        "gridPos": {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {} if panel.single else {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for place, (legend, expression) in enumerate(panel.lines.items())
        ],
    }  # fmt: skip


def provisioning(deployment: Deployment, *, prometheus_url: str, dashboards: str = DASHBOARDS) -> dict[str, File]:
    """Files below one folder: ``provisioning/`` is Grafana's (GF_PATHS_PROVISIONING), ``dashboards/`` is found at ``dashboards``."""
    source = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus", "uid": SOURCE["uid"], "type": SOURCE["type"], "access": "proxy", "url": prometheus_url,
                "isDefault": True, "editable": False,
                "jsonData": {"timeInterval": f"{deployment.wishes.scrape_s:g}s", "httpMethod": "POST"},
            }
        ],
    }  # fmt: skip
    provider = {
        "apiVersion": 1,
        "providers": [{"name": "llmopt", "type": "file", "disableDeletion": True, "options": {"path": dashboards}}],
    }
    return {
        "provisioning/datasources/prometheus.yaml": File(text=yaml_text(source)),
        "provisioning/dashboards/llmopt.yaml": File(text=yaml_text(provider)),
        "dashboards/llmopt.json": File(text=json_text(dashboard(deployment))),
    }
