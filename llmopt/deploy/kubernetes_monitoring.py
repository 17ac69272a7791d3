"""For clusters with the Prometheus operator: what is scraped, and the rules, as its two kinds of object."""

from __future__ import annotations

from typing import Any

from llmopt.deploy.kubernetes_objects import metadata
from llmopt.deploy.plan import Deployment
from llmopt.deploy.rules import rules


def service_monitor(deployment: Deployment) -> dict[str, Any]:
    """The rules know the job by its name: the operator takes it from the label of the Service that ``jobLabel`` names."""
    every = f"{round(deployment.wishes.scrape_s * 1000)}ms"
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(deployment),
        "spec": {
            "jobLabel": "llmopt/scrape",
            "selector": {"matchLabels": {"llmopt/scrape": jobs(deployment)["engine"]}},
            "endpoints": [
                {
                    "port": "http",
                    "path": deployment.engine.metrics_path,
                    "interval": every,
                    "scrapeTimeout": every,
                }
            ],
        },
    }


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
