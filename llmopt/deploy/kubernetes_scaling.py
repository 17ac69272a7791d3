"""More pods when there is more to do than was measured to be good: what is counted, where the line is, and how fast.

Counted are requests in flight per pod, running and waiting: at the measured concurrency the SLOs held, beyond it nobody
knows.  The queue alone would tell too late, since an engine admits as many as it has slots, and use of the KV cache tells of
lengths as much as of load.  An engine without such gauges is scaled by answered requests a second, against a share of what
a replica was measured to take; the share is there because at its limit a pod answers no more than its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmopt.deploy.kubernetes_network import MONITORING_NAMESPACE
from llmopt.deploy.kubernetes_objects import metadata
from llmopt.deploy.plan import Deployment
from llmopt.deploy.scaling import bounds

METRIC = {"gauge": "llmopt_requests_in_flight", "rate": "llmopt_requests_per_second"}
OF_THE_MEASURED_RATE = 0.8
PROMETHEUS = f"http://prometheus-operated.{MONITORING_NAMESPACE}.svc:9090"
LONGEST_PERIOD_S = 1800  # that Kubernetes takes
DOWN_AFTER_S = 300
# Filled in where they are known: by the manifests here, by the chart for its release.
NAMESPACE, SERVICE = "$(NAMESPACE)", "$(SERVICE)"


@dataclass(frozen=True, kw_only=True)
class Signal:
    """``series``: the engine's own names that are added up, gauges or one counter; ``per_pod``: what one pod may have."""

    kind: str
    series: tuple[str, ...]
    per_pod: float

    @property
    def metric(self) -> str:
        return METRIC[self.kind]

    def expression(self, labels: str) -> str:
        """Summed by the caller; ``labels`` stand in the selector as they are."""
        chosen = f'{{__name__=~"{"|".join(self.series)}",{labels}}}'
        return chosen if self.kind == "gauge" else f"rate({chosen}[2m])"


def signal(deployment: Deployment) -> Signal | None:
    """What to scale by; ``None`` where the engine tells nothing of its load, or nothing was measured to hold it against."""
    names, known = deployment.engine.metrics, deployment.evidence
    gauges = tuple(names[key] for key in ("running", "waiting") if key in names)
    if len(gauges) == 2 and known.concurrency:
        return Signal(kind="gauge", series=gauges, per_pod=known.concurrency)
    rate = deployment.capacity.per_replica_rps
    if "e2e_time" in names and rate:
        return Signal(kind="rate", series=(f"{names['e2e_time']}_count",), per_pod=OF_THE_MEASURED_RATE * rate)
    return None


def autoscaler(deployment: Deployment) -> str:
    """``hpa``, ``keda`` or ``none``: also where the load of the engine is told to nobody, which is without --monitoring."""
    scraped = deployment.wishes.monitoring and signal(deployment) is not None
    return deployment.wishes.autoscaler if scraped else "none"


def behavior(deployment: Deployment) -> dict[str, Any]:
    """Up by half in the time that a start takes, for until then nothing is gained; down by one, and late."""
    start = min(LONGEST_PERIOD_S, max(15, math.ceil(deployment.evidence.load_s or deployment.ready_timeout_s)))
    more = max(1, deployment.replicas // 2)
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": more, "periodSeconds": start}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": max(DOWN_AFTER_S, start),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": max(60, start)}],
        },
    }


def target(value: float) -> str:
    """As Kubernetes writes parts of one: ``3840m``."""
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"


def pod_autoscaler(deployment: Deployment, chosen: Signal) -> dict[str, Any]:
    least, most = bounds(deployment)
    wanted = {"type": "AverageValue", "averageValue": target(chosen.per_pod)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(deployment),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": chosen.metric}, "target": wanted}}],
            "behavior": behavior(deployment),
        },
    }


def adapter_rules(chosen: Signal) -> dict[str, Any]:
    """Values of the prometheus-adapter chart: where the metric of the autoscaler comes from."""
    series = chosen.series[0]
    return {
        "rules": {
            "custom": [
                {
                    "seriesQuery": f'{series}{{namespace!="",pod!=""}}',
                    "resources": {
                        "overrides": {name: {"resource": name} for name in ("namespace", "pod")},
                    },
                    "name": {"matches": "^.*$", "as": chosen.metric},
                    "metricsQuery": f"sum by (<<.GroupBy>>) ({chosen.expression('<<.LabelMatchers>>')})",
                }
            ]
        }
    }


def query(chosen: Signal) -> str:
    return f'sum({chosen.expression(f"""namespace="{NAMESPACE}",service="{SERVICE}" """.strip())})'


def scaled_object(deployment: Deployment, chosen: Signal) -> dict[str, Any]:
    """KEDA's, which asks Prometheus itself."""
    least, most = bounds(deployment)
    asked = query(chosen).replace(NAMESPACE, deployment.name).replace(SERVICE, f"{deployment.name}-metrics")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(deployment),
        "spec": {
            "scaleTargetRef": {"name": deployment.name},
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "pollingInterval": max(5, round(deployment.wishes.scrape_s)),
            # Without Prometheus nobody knows the load: as planned.
            "fallback": {"failureThreshold": 3, "replicas": least},
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior(deployment)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": PROMETHEUS,
                        "query": asked,
                        "threshold": f"{chosen.per_pod:g}",
                    },
                }
            ],
        },
    }
