"""The scrape configuration of Prometheus, 2.42 or newer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.deploy.plan import Deployment
from llmopt.deploy.rules import seconds

# vLLM 0.32 sends 600 samples, and more with each adapter; one that runs away must not fill the disk.
MOST_SAMPLES = 20_000


def prometheus_config(
    deployment: Deployment, *, targets: Mapping[str, Sequence[str]], rules: str, alertmanager: str | None
) -> dict[str, Any]:
    """``targets``: job (``engine``, ``canary``, ``gpu`` …) → addresses; ``rules``: path of the rule file; a job without
    addresses, and an engine without metrics, is left out."""
    interval = seconds(deployment.wishes.scrape_s)
    config: dict[str, Any] = {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": seconds(min(10.0, deployment.wishes.scrape_s)),
            "evaluation_interval": interval,
            "external_labels": {"deployment": deployment.name},
        },
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": job,
                "metrics_path": path,
                "sample_limit": MOST_SAMPLES,
                "static_configs": [{"targets": list(addresses)}],
            }
            for job, addresses in targets.items()
            if addresses and (path := metrics_path(deployment, job))
        ],
    }
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    return config


def metrics_path(deployment: Deployment, job: str) -> str | None:
    return deployment.engine.metrics_path if job == "engine" else "/metrics"
