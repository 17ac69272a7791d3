"""``llmopt watch`` in a cluster: one probe after another through the Service, for the rules that ask what a user sees.

What it holds the engine to is ``deployment.json``, which the kustomization makes a ConfigMap of; the model's volume has the
tokenizer.  Nobody publishes its image: ``canary/Dockerfile`` makes it.
"""

from __future__ import annotations

from typing import Any

from llmopt.core.domain import stable_hash
from llmopt.deploy.canary import DOCUMENT, EVERY_S, told
from llmopt.deploy.kubernetes_engine import POD_SECURITY, SECURITY, claim, contents
from llmopt.deploy.kubernetes_monitoring import monitor
from llmopt.deploy.kubernetes_objects import CLIENT_LABEL, metadata, selector
from llmopt.deploy.plan import CANARY_PORT, ENGINE_PORT, MODEL_IN_CONTAINER, Deployment

COMPONENT = "canary"
SUFFIX = f"-{COMPONENT}"
RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}}


def image(deployment: Deployment) -> str:
    return f"{deployment.name}{SUFFIX}:{deployment.llmopt_version}"


def described(deployment: Deployment) -> dict[str, Any]:
    """For the generator of ConfigMaps: ``deployment.json`` is written last, when all else is."""
    name = {"name": f"{deployment.name}{SUFFIX}", "namespace": deployment.name}
    return {**name, "files": [DOCUMENT], "options": {"disableNameSuffixHash": True}}


def canary_deployment(deployment: Deployment) -> dict[str, Any]:
    command = ["llmopt", "watch", "/deployment", "--url", f"http://{deployment.name}:{ENGINE_PORT}/v1"]
    options = [
        "--tokenizer",
        MODEL_IN_CONTAINER,
        "--host",
        "0.0.0.0",
        "--port",
        str(CANARY_PORT),
        "--every",
        str(EVERY_S),
    ]
    model = contents(deployment)[0][1]
    container = {
        "name": COMPONENT,
        "image": image(deployment),
        "imagePullPolicy": "IfNotPresent",
        "command": [*command, *options],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "metrics", "containerPort": CANARY_PORT}],
        "resources": RESOURCES,
        "securityContext": SECURITY,
        "volumeMounts": [
            {"name": "deployment", "mountPath": "/deployment", "readOnly": True},
            {"name": "model", "mountPath": MODEL_IN_CONTAINER, "subPath": model, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "deployment", "configMap": {"name": f"{deployment.name}{SUFFIX}"}},
            {"name": "model", "persistentVolumeClaim": {"claimName": claim(deployment), "readOnly": True}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    chosen = selector(deployment, COMPONENT)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, SUFFIX, component=COMPONENT),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": chosen},
            "template": {
                "metadata": {
                    "labels": {**chosen, CLIENT_LABEL: deployment.name},
                    # A pod is not replaced for a ConfigMap that has changed.
                    "annotations": {"llmopt/deployment": stable_hash(told(deployment), 64)},
                },
                "spec": pod,
            },
        },
    }


def canary_service(deployment: Deployment) -> dict[str, Any]:
    made = metadata(deployment, SUFFIX, component=COMPONENT)
    made["labels"] |= {"llmopt/scrape": f"{deployment.name}{SUFFIX}"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": made,
        "spec": {
            "selector": selector(deployment, COMPONENT),
            "ports": [{"name": "metrics", "port": CANARY_PORT, "targetPort": "metrics"}],
        },
    }


def canary_monitor(deployment: Deployment) -> dict[str, Any]:
    return monitor(deployment, job=COMPONENT, suffix=SUFFIX, port="metrics", path="/metrics")
