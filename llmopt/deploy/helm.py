"""The same objects as a Helm chart: templates that never change, and values that hold all that was measured.

Whatever a user named stands in ``values.yaml`` alone, written by a library, and goes through ``toJson`` in the templates:
Helm expands ``{{`` in templates, not in values.  Sizes are text there, since Helm reads numbers as floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.deploy.canary import EVERY_S
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.kubernetes_canary import RESOURCES
from llmopt.deploy.kubernetes_engine import (
    POD_SECURITY,
    SECURITY,
    affinity,
    claim_bytes,
    contents,
    drain_s,
    environment,
    image_of,
    launch_of,
    probes,
    progress_s,
    resources,
    strategy,
    tolerations,
    weights_key,
    words,
)
from llmopt.deploy.kubernetes_monitoring import dashboard_text, interval, rule_groups
from llmopt.deploy.kubernetes_network import (
    INGRESS_CLASS,
    INGRESS_NAMESPACE,
    MONITORING_NAMESPACE,
    host,
    ingress_annotations,
)
from llmopt.deploy.kubernetes_objects import GIB, evidence, label_value, quantity
from llmopt.deploy.kubernetes_scaling import PROMETHEUS, autoscaler, behavior, query, signal, target
from llmopt.deploy.plan import CANARY_PORT, ENGINE_PORT, Deployment, File
from llmopt.deploy.scaling import bounds

FOLDER = Path(__file__).parent / "templates" / "helm"
CHART_VERSION = "0.1.0"


def chart(deployment: Deployment) -> dict[str, File]:
    """Path in the chart → file."""
    static = {
        str(path.relative_to(FOLDER)): File(text=path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.rglob("*"))
        if path.is_file()
    }
    return {
        "Chart.yaml": File(text=yaml_text(about(deployment))),
        "values.yaml": File(text=documented(values(deployment))),
        **static,
    }


def about(deployment: Deployment) -> dict[str, Any]:
    engine = deployment.engine
    return {
        "apiVersion": "v2",
        "name": deployment.name,
        "description": f"{engine.title} as llmopt measured it",
        "type": "application",
        "version": CHART_VERSION,
        "appVersion": engine.version or "unknown",
        "kubeVersion": ">=1.27.0-0",
    }


def values(deployment: Deployment) -> dict[str, Any]:
    """The chart's values, in the order in which people look for them."""
    wishes, checks = deployment.wishes, probes(deployment)
    return {
        "fullnameOverride": deployment.name,
        "image": image_values(image_of(deployment).name),
        "engine": {
            **words(deployment),
            "env": environment(deployment),
            "files": dict(launch_of(deployment).files),
            "port": ENGINE_PORT,
            "version": label_value(deployment.engine.version or ""),
        },
        "replicas": deployment.replicas,
        "resources": resources(deployment),
        "sharedMemory": shared_memory(deployment),
        "startupProbe": checks["startupProbe"],
        "readinessProbe": checks["readinessProbe"],
        "livenessProbe": checks["livenessProbe"],
        "drainSeconds": drain_s(deployment),
        "progressDeadlineSeconds": progress_s(deployment),
        "strategy": strategy(deployment),
        "model": {
            "key": weights_key(deployment),
            "existingClaim": "",
            "size": quantity(claim_bytes(deployment), GIB),
            "accessModes": ["ReadWriteMany"],
            "storageClass": "",
            "mounts": [{"subPath": folder, "mountPath": inside} for _, folder, inside in contents(deployment)],
        },
        "podDisruptionBudget": {"enabled": True, "maxUnavailable": max(1, deployment.capacity.spare)},
        "autoscaling": autoscaling_values(deployment),
        "ingress": {
            "enabled": bool(wishes.domain),
            "className": INGRESS_CLASS,
            "host": host(deployment),
            "tls": wishes.tls,
            "annotations": ingress_annotations(deployment),
        },
        "networkPolicy": {
            "enabled": True,
            "ingressNamespace": INGRESS_NAMESPACE,
            "monitoringNamespace": MONITORING_NAMESPACE,
        },
        "metrics": {"path": deployment.engine.metrics_path or ""},
        "monitoring": monitoring_values(deployment),
        "canary": {
            "image": "",
            "deployment": "",
            "port": CANARY_PORT,
            "every": str(EVERY_S),
            "resources": RESOURCES,
        },
        "podSecurityContext": POD_SECURITY,
        "securityContext": SECURITY,
        "affinity": affinity(deployment),
        "tolerations": tolerations(deployment),
        "nodeSelector": {},
        "imagePullSecrets": [],
        "evidence": evidence(deployment),
    }


def image_values(name: str) -> dict[str, str]:
    """``repository:tag``; what has a digest, or no tag, stays whole."""
    repository, _, tag = name.rpartition(":")
    whole = not repository or "/" in tag or "@" in name
    return {"repository": name if whole else repository, "tag": "" if whole else tag, "pullPolicy": "IfNotPresent"}


def shared_memory(deployment: Deployment) -> str:
    size = image_of(deployment).shared_memory_bytes
    return quantity(size, GIB) if size else ""


def autoscaling_values(deployment: Deployment) -> dict[str, Any]:
    chosen, (least, most) = signal(deployment), bounds(deployment)
    return {
        "kind": autoscaler(deployment),
        "minReplicas": least,
        "maxReplicas": most,
        "metric": chosen.metric if chosen else "",
        "averageValue": target(chosen.per_pod) if chosen else "",
        "behavior": behavior(deployment),
        "keda": {
            "serverAddress": PROMETHEUS,
            "query": query(chosen) if chosen else "",
            "threshold": f"{chosen.per_pod:g}" if chosen else "",
            "pollingInterval": max(5, round(deployment.wishes.scrape_s)),
        },
    }


def monitoring_values(deployment: Deployment) -> dict[str, Any]:
    told: dict[str, Any] = {"groups": [], "dashboard": ""}
    if deployment.wishes.monitoring:
        told = {"groups": rule_groups(deployment), "dashboard": dashboard_text(deployment)}
    return {"enabled": deployment.wishes.monitoring, "interval": interval(deployment), **told}


# What stands above each of the values; a value without one explains itself.
COMMENTS: Mapping[str, str] = {
    "image": "The image that the measured version runs in; tag is empty where the name holds a digest.",
    "engine": "The measured command line, word by word: another word is another configuration, which nobody measured.",
    "replicas": "How many, where nothing scales them.",
    "resources": "Memory: the measured peak and headroom. GPUs: as measured.",
    "sharedMemory": "/dev/shm, through which an engine's processes send tensors; empty for none.",
    "startupProbe": "A real completion of one token; the others ask the cheap path, for a completion queues behind users'.",
    "drainSeconds": "How long a pod answers on after it was told to stop: streams end, engines cut them at the signal itself.",
    "strategy": "maxSurge wants a spare GPU, maxUnavailable a spare replica.",
    "model": "Its volume. key: of the weights, others get another claim. existingClaim: one that is there already, with the folders of mounts.",
    "autoscaling": "kind: hpa (needs prometheus-adapter), keda, or none. Has the engine scraped. averageValue, threshold: as measured.",
    "ingress": "Annotations are of ingress-nginx. tls: a Secret NAME-tls with the certificate.",
    "networkPolicy": "Who may ask: the two namespaces, and pods with the label llmopt/client-of: NAME.",
    "monitoring": "For clusters with the Prometheus operator. Rules and dashboard name the jobs fullnameOverride-engine and -canary.",
    "canary": "Needs monitoring. Both: --set canary.image=REGISTRY/… --set-file canary.deployment=../deployment.json",
    "evidence": "What is known of this configuration, as annotations of the Deployment.",
}


def documented(made: Mapping[str, Any]) -> str:
    """``values.yaml`` with a comment above each part."""
    parts = [
        yaml_text({name: part}, head=(text,) if (text := COMMENTS.get(name)) else ()) for name, part in made.items()
    ]
    return "\n".join(parts)
