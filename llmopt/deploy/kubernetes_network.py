"""Who reaches the engine in a cluster: its Services, the Ingress, the NetworkPolicy, and how many pods may be away at once."""

from __future__ import annotations

import ipaddress
import math
from typing import Any

from llmopt.deploy.kubernetes_objects import CLIENT_LABEL, metadata, selector
from llmopt.deploy.limits import client_limit, silence_s
from llmopt.deploy.plan import ENGINE_PORT, Deployment

# Where the two usually live; the chart's values and a patch of the kustomization name others.
INGRESS_NAMESPACE, MONITORING_NAMESPACE = "ingress-nginx", "monitoring"
INGRESS_CLASS = "nginx"
NAMESPACE_NAME = "kubernetes.io/metadata.name"


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
    told |= rate_limit(deployment)
    return {f"{prefix}/{name}": value for name, value in told.items()}


def rate_limit(deployment: Deployment) -> dict[str, str]:
    """ingress-nginx knows whole requests a second or a minute, and as burst whole multiples of them."""
    limit = client_limit(deployment)
    if limit is None:
        return {}
    name, rate = ("limit-rpm", limit.per_minute) if limit.per_second is None else ("limit-rps", limit.per_second)
    return {name: str(rate), "limit-burst-multiplier": str(math.ceil(limit.burst / rate))}


def host(deployment: Deployment) -> str:
    """The Ingress's, empty without one: an API server takes it in lower case alone, and names are the same in either."""
    return (deployment.wishes.domain or "").lower()


def is_address(domain: str) -> bool:
    """Which no Ingress has as its host."""
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        return False
    return True


def ingress(deployment: Deployment) -> dict[str, Any]:
    wishes = deployment.wishes
    backend = {"service": {"name": deployment.name, "port": {"name": "http"}}}
    tls = [{"hosts": [host(deployment)], "secretName": f"{deployment.name}-tls"}]
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
                    "host": host(deployment),
                    "http": {"paths": [{"path": "/v1/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }
