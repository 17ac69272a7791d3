"""For clusters with the Prometheus operator: what is scraped, and the rules, as its two kinds of object; and the dashboard."""

from __future__ import annotations

from typing import Any

from llmopt.deploy.documents import json_text
from llmopt.deploy.grafana import dashboard
from llmopt.deploy.kubernetes_objects import metadata
from llmopt.deploy.plan import Deployment
from llmopt.deploy.rules import rules, seconds


def service_monitor(deployment: Deployment) -> dict[str, Any]:
    return monitor(deployment, job="engine", suffix="", port="http", path=deployment.engine.metrics_path or "/metrics")


def monitor(deployment: Deployment, *, job: str, suffix: str, port: str, path: str) -> dict[str, Any]:
    """The rules know a job by its name: the operator takes it from the label of the Service that ``jobLabel`` names."""
    every = interval(deployment)
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(deployment, suffix, component=job),
        "spec": {
            "jobLabel": "llmopt/scrape",
            "selector": {"matchLabels": {"llmopt/scrape": jobs(deployment)[job]}},
            "endpoints": [{"port": port, "path": path, "interval": every, "scrapeTimeout": every}],
        },
    }


def interval(deployment: Deployment) -> str:
    return seconds(deployment.wishes.scrape_s)


def jobs(deployment: Deployment) -> dict[str, str]:
    """The label ``job`` of each: one Prometheus watches the whole cluster. GPUs: as NVIDIA's operator calls their exporter."""
    own = {job: f"{deployment.name}-{job}" for job in ("engine", "canary")}
    return own | {"gpu": "nvidia-dcgm-exporter"}


def rule_groups(deployment: Deployment) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = rules(deployment, jobs=jobs(deployment))["groups"]
    return groups


def prometheus_rule(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata(deployment),
        "spec": {"groups": rule_groups(deployment)},
    }


def dashboard_map(deployment: Deployment) -> dict[str, Any]:
    """A dashboard as Grafana's sidecar finds it (kube-prometheus-stack): by this label, in any namespace."""
    made = metadata(deployment, "-dashboard")
    made["labels"] |= {"grafana_dashboard": "1"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": made,
        "data": {f"{deployment.name}.json": dashboard_text(deployment)},
    }


def dashboard_text(deployment: Deployment) -> str:
    return json_text(dashboard(deployment, jobs=jobs(deployment)))
