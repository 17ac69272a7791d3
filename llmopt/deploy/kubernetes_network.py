"""Who reaches the engine in a cluster: its Services, the Ingress, the NetworkPolicy, and how many pods may be away at once."""

from __future__ import annotations

import math
from typing import Any

from llmopt.deploy.kubernetes_objects import CLIENT_LABEL, metadata, selector
from llmopt.deploy.plan import ENGINE_PORT, Deployment

# Where the two usually live; the chart's values and a patch of the kustomization name others.
INGRESS_NAMESPACE, MONITORING_NAMESPACE = "ingress-nginx", "monitoring"
INGRESS_CLASS = "nginx"
NAMESPACE_NAME = "kubernetes.io/metadata.name"
LONGEST_SILENCE_S = 600  # of an upstream: a long prompt may wait in the queue before its first token


def service(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment),
        "spec": {
            "selector": selector(deployment),
            "ports": [{"name": "http", "port": ENGINE_PORT, "targetPort": "http"}],
        },
    }


def metrics_service(deployment: Deployment) -> dict[str, Any]:
    """Without an address of its own: each pod is asked, also one that is not ready, whose metrics tell why."""
    made = metadata(deployment, "-metrics")
    made["labels"] |= {"llmopt/scrape": f"{deployment.name}-engine"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": made,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector(deployment),
            "ports": [{"name": "http", "port": ENGINE_PORT, "targetPort": "http"}],
        },
    }


def disruption_budget(deployment: Deployment) -> dict[str, Any]:
    """As many as the capacity has to spare; one where it has none, or no node could ever be emptied."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment),
        "spec": {
            "maxUnavailable": max(1, deployment.capacity.spare),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(deployment)},
        },
    }


def network_policy(deployment: Deployment) -> dict[str, Any]:
    """In: the gateway, the monitoring, and pods that carry the clients' label. Out: the names of the cluster, nothing else."""
    wishes = deployment.wishes
    namespaces = [INGRESS_NAMESPACE] * bool(wishes.domain) + [MONITORING_NAMESPACE] * wishes.monitoring
    peers: list[dict[str, Any]] = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {CLIENT_LABEL: deployment.name}}},
        *({"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}} for name in namespaces),
    ]
    cluster_dns = {
        "to": [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "kube-system"}}}],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment),
        "spec": {
            "podSelector": {"matchLabels": selector(deployment)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": "http"}]}],
            "egress": [cluster_dns],
        },
    }


def ingress_annotations(deployment: Deployment) -> dict[str, str]:
    """For ingress-nginx: tokens pass as they come, long answers end, and no client takes it all."""
    wishes, prefix = deployment.wishes, "nginx.ingress.kubernetes.io"
    told = {
        "proxy-buffering": "off",
        "proxy-request-buffering": "on",  # a request that was read whole can be sent to the next pod
        "proxy-http-version": "1.1",
        "proxy-connect-timeout": "5",
        "proxy-read-timeout": str(silence_s(deployment)),
        "proxy-send-timeout": "60",
        "proxy-body-size": str(wishes.max_body_bytes),
        "proxy-next-upstream": "error http_502 http_503 non_idempotent",
        "proxy-next-upstream-tries": "2",
        "load-balance": "ewma",  # a slow pod gets less; round robin would not see it
    }
    if (limit := rate_limit(deployment)) is not None:
        told |= {"limit-rps": str(limit), "limit-burst-multiplier": str(burst(deployment, limit))}
    return {f"{prefix}/{name}": value for name, value in told.items()}


def silence_s(deployment: Deployment) -> int:
    """How long nothing may come from a pod: the limit that requests were measured with."""
    return math.ceil(float(deployment.evidence.workload.get("request_timeout_s") or LONGEST_SILENCE_S))


def rate_limit(deployment: Deployment) -> int | None:
    """Requests a second of one client: as asked, or twice what all replicas were measured to take."""
    asked, measured = deployment.wishes.rate_limit_rps, deployment.capacity.total_rps
    limit = asked if asked is not None else None if measured is None else 2 * measured
    return None if limit is None else max(1, math.ceil(limit))


def burst(deployment: Deployment, limit: int) -> int:
    """As multiple of the limit: all users of all replicas twice, for those whose answers end together ask again together."""
    return max(1, math.ceil(2 * (deployment.evidence.concurrency or limit) * deployment.replicas / limit))


def ingress(deployment: Deployment) -> dict[str, Any]:
    wishes = deployment.wishes
    backend = {"service": {"name": deployment.name, "port": {"name": "http"}}}
    tls = [{"hosts": [wishes.domain], "secretName": f"{deployment.name}-tls"}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(deployment, annotations=ingress_annotations(deployment)),
        "spec": {
            "ingressClassName": INGRESS_CLASS,
            **({"tls": tls} if wishes.tls else {}),
            # Its API and nothing else: /metrics, /health and what else an engine has stay inside.
            "rules": [
                {
                    "host": wishes.domain,
                    "http": {"paths": [{"path": "/v1/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }
