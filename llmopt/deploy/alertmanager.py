"""Who is told of an alert, how often: Alertmanager 0.26 or newer, which takes the address of a webhook from a file."""

from __future__ import annotations

from typing import Any

from llmopt.deploy.plan import Deployment

WEBHOOK = "/run/secrets/alert_webhook_url"


def alertmanager_config(deployment: Deployment, *, webhook_file: str = WEBHOOK) -> dict[str, Any]:
    """One receiver; the address that it posts to is a secret (it lets anybody write there) and stands in ``webhook_file``."""
    return {
        "route": {
            "receiver": "webhook",
            # Together what one fault brings about: a message for a lost replica, not one for each alert that it fires.
            "group_by": ["deployment", "severity"],
            "group_wait": "10s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": [
                {"receiver": "webhook", "matchers": ['severity="page"'], "repeat_interval": "1h"},
            ],
        },
        "inhibit_rules": [
            # With nobody left the single ones say nothing new.
            {
                "source_matchers": ['alertname="AllInstancesDown"'],
                "target_matchers": ['alertname=~"InstanceDown|CanaryFailing|CanaryErrors"'],
                "equal": ["deployment"],
            },
            # A page about an SLO includes its ticket.
            {
                "source_matchers": ['alertname="SloBurn"', 'severity="page"'],
                "target_matchers": ['alertname="SloBurn"', 'severity="ticket"'],
                "equal": ["deployment", "slo"],
            },
        ],
        "receivers": [
            {
                "name": "webhook",
                "webhook_configs": [{"url_file": webhook_file, "send_resolved": True, "max_alerts": 50}],
            }
        ],
    }
