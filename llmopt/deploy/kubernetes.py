"""Kubernetes: plain manifests with a kustomization, and the same as a Helm chart.

``kubectl apply -k .`` takes all of it, ``-k manifests`` what any cluster has; what wants an operator, or an adapter of
metrics, is a component of its own (``components/``).  What is of one cluster alone, the address of its registry, a component
that it cannot have, stands in an overlay that is never written here (``OVERLAY``): a file of ours that somebody edits stops
the next deploy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmopt.deploy import Step, Target
from llmopt.deploy import kubernetes_canary as canary
from llmopt.deploy.canary import dockerfile, wheel
from llmopt.deploy.documents import json_text, yaml_text
from llmopt.deploy.helm import chart
from llmopt.deploy.kubernetes_engine import (
    POD_SECURITY,
    SECURITY,
    claim,
    config_map,
    contents,
    engine_deployment,
    image_of,
    launch_of,
    volume_claim,
)
from llmopt.deploy.kubernetes_monitoring import dashboard_map, prometheus_rule, service_monitor
from llmopt.deploy.kubernetes_network import (
    disruption_budget,
    host,
    ingress,
    is_address,
    metrics_service,
    network_policy,
    service,
)
from llmopt.deploy.kubernetes_objects import labels, lost, metadata
from llmopt.deploy.kubernetes_scaling import adapter_rules, autoscaler, pod_autoscaler, scaled_object, signal
from llmopt.deploy.plan import ENGINE_PORT, GATEWAY_PORT, Deployment, File
from llmopt.deploy.templates import render

HEADS = {
    "persistentvolumeclaim.yaml": (
        "Of these weights alone, and fill-model.sh fills it. Others have a claim of their own, so that a rollback finds its own;",
        "what neither this nor previous/ names is deleted by kubectl --namespace NAME delete persistentvolumeclaim CLAIM.",
        "Pods of several nodes read it, so its class must know ReadWriteMany (NFS, CephFS, EFS, Filestore, Azure Files);",
        "with ReadWriteOnce all replicas must be on one node. Pods mount it read-only.",
    ),
    "networkpolicy.yaml": (
        "only where the cluster's network enforces policies; pods that may ask carry the label llmopt/client-of",
    ),
    "poddisruptionbudget.yaml": ("what the capacity has to spare when nodes are emptied",),
    "ingress.yaml": ("annotations are of ingress-nginx; another controller needs its own words for the same",),
}
OF_ONE_MACHINE = ("compose", "systemd", "shell")  # what --gateway litellm is written for
# Beside the folder and not in it: kustomize 5.5 refuses a resource that the overlay lies in, as a cycle.
OVERLAY = "../site/kustomization.yaml"
ALL_HEAD = (
    f"all of it. What is of your cluster alone stands in an overlay of your own beside this folder, {OVERLAY}:",
    "resources: [../THIS-FOLDER], images: with the addresses in your registry, patches: which take out what the cluster lacks",
    "(the first lines of a component name it); kubectl apply -k ../site then takes the place of -k .",
)
LOADER_HEAD = ("of fill-model.sh alone, not of the kustomization: it has nothing but the volume and a shell",)
LOADED_IN_S = 6 * 3600  # then it goes by itself, if nobody took it away
# The strictest of Kubernetes' own levels: what runs here needs nothing that it forbids.
POD_SECURITY_LEVEL = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


A_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")  # of a Service: RFC 1035, no digit at its beginning


def refusal(deployment: Deployment) -> str | None:
    engine, wishes = deployment.engine, deployment.wishes
    if engine.image is None or engine.inside is None:
        return f"no image of {engine.title} is known, and a cluster runs nothing else"
    if not A_NAME.fullmatch(deployment.name):
        return f"{deployment.name} is no name of a Service, which begins with a letter: --name"
    if wishes.gateway != "nginx":
        # It takes a replica out for a while that failed, and behind a Service there is one address for all of them.
        return f"--gateway {wishes.gateway} is for one machine ({', '.join(OF_ONE_MACHINE)}): it must see each replica, and a Service hides them"
    if wishes.cache is not None:
        return f"--cache {wishes.cache} goes with --gateway litellm, which is for one machine ({', '.join(OF_ONE_MACHINE)})"
    if wishes.domain and is_address(wishes.domain):
        return f"{wishes.domain} is an address, and an Ingress takes names alone: --domain llm.example.org"
    if not wishes.domain and (wishes.tls or wishes.rate_limit_rps is not None):
        return "--tls and --rate-limit are of the Ingress, which goes with --domain"
    if wishes.domain and wishes.port != GATEWAY_PORT:
        return f"--port {wishes.port} is not the Ingress's to choose: its controller listens on 80 and 443"
    if wishes.autoscaler == "keda" and not wishes.monitoring:
        return "--autoscaler keda asks Prometheus for the load, which goes with --monitoring"
    if (word := lost(deployment)) is not None:
        return f"{word!r} has a character that kubectl and Helm lose: rename what is called so"
    return None


def files(deployment: Deployment) -> Mapping[str, File]:
    """Raises UsageError where ``refusal`` has a reason."""
    base = {name: File(text=yaml_text(made, head=HEADS.get(name, ()))) for name, made in manifests(deployment).items()}
    parts = {name: part for name, part in components(deployment).items() if part}
    written: dict[str, File] = {f"manifests/{name}": file for name, file in base.items()}
    written["manifests/kustomization.yaml"] = kustomization("Kustomization", resources=list(base))
    for part, made in parts.items():
        written |= {f"components/{part}/{name}": file for name, file in made.items()}
    watched = deployment.wishes.monitoring
    written["kustomization.yaml"] = kustomization(
        "Kustomization",
        resources=["manifests"],
        components=[f"components/{part}" for part in parts],
        configMapGenerator=[canary.described(deployment)] if watched else [],
        head=ALL_HEAD,
    )
    written["manifests/fill-model.sh"] = fill_script(deployment)
    written["manifests/model-loader.yaml"] = File(text=yaml_text(model_loader(deployment), head=LOADER_HEAD))
    return written | image_files(deployment) | {f"chart/{name}": file for name, file in chart(deployment).items()}


def manifests(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """What any cluster takes: file → object."""
    made = {
        "namespace.yaml": namespace(deployment),
        "persistentvolumeclaim.yaml": volume_claim(deployment),
        "deployment.yaml": engine_deployment(deployment),
        "service.yaml": service(deployment),
        "poddisruptionbudget.yaml": disruption_budget(deployment),
        "networkpolicy.yaml": network_policy(deployment),
    }
    if deployment.engine.metrics_path:
        made["service-metrics.yaml"] = metrics_service(deployment)
    if launch_of(deployment).files:
        made["configmap.yaml"] = config_map(deployment)
    if deployment.wishes.domain:
        made["ingress.yaml"] = ingress(deployment)
    return made


def components(deployment: Deployment) -> dict[str, dict[str, File]]:
    """What not every cluster has: component → its files."""
    found: dict[str, dict[str, File]] = {"autoscaling": autoscaling(deployment)}
    if deployment.wishes.monitoring:
        objects = {"prometheusrule.yaml": prometheus_rule(deployment), "dashboard.yaml": dashboard_map(deployment)}
        if deployment.engine.metrics_path:
            objects = {"servicemonitor.yaml": service_monitor(deployment)} | objects
        head = ("needs the Prometheus operator (monitoring.coreos.com); its selectors must admit this namespace",)
        found["canary"] = canary_component(deployment)
        found["monitoring"] = {name: File(text=yaml_text(made)) for name, made in objects.items()} | {
            "kustomization.yaml": kustomization("Component", resources=list(objects), head=head)
        }
    return found


def canary_component(deployment: Deployment) -> dict[str, File]:
    objects = {
        "deployment.yaml": canary.canary_deployment(deployment),
        "service.yaml": canary.canary_service(deployment),
        "servicemonitor.yaml": canary.canary_monitor(deployment),
    }
    head = (
        f"needs an image {canary.image(deployment)} in a registry (docker build canary/) and its address under images in an",
        f"overlay ({OVERLAY} beside the folder), and the Prometheus operator; without it the alert CanarySilent fires",
    )
    written = {name: File(text=yaml_text(made)) for name, made in objects.items()}
    return written | {"kustomization.yaml": kustomization("Component", resources=list(objects), head=head)}


def autoscaling(deployment: Deployment) -> dict[str, File]:
    """Nothing where it is not wished for, or where nobody tells what to scale by."""
    chosen, wished = signal(deployment), autoscaler(deployment)
    if wished == "none" or chosen is None:
        return {}
    # The autoscaler owns the number of replicas: each apply would set it back.
    released = {
        "target": {"kind": "Deployment", "name": deployment.name},
        "patch": json_text([{"op": "remove", "path": "/spec/replicas"}]),
    }
    if wished == "keda":
        name, made = "scaledobject.yaml", scaled_object(deployment, chosen)
        head, more = "needs KEDA, and a Prometheus at the address in scaledobject.yaml", {}
    else:
        name, made = "horizontalpodautoscaler.yaml", pod_autoscaler(deployment, chosen)
        head = f"needs prometheus-adapter with the rule of prometheus-adapter.yaml; without {chosen.metric} the least replicas stay"
        rule = ("values of the prometheus-adapter chart: helm upgrade … --values prometheus-adapter.yaml",)
        more = {"prometheus-adapter.yaml": File(text=yaml_text(adapter_rules(chosen), head=rule))}
    return {
        name: File(text=yaml_text(made)),
        "kustomization.yaml": kustomization("Component", resources=[name], patches=[released], head=(head,)),
        **more,
    }


def kustomization(kind: str, *, head: tuple[str, ...] = (), **parts: list[Any]) -> File:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    made = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
    return File(text=yaml_text(made | {name: part for name, part in parts.items() if part}, head=head))


def namespace(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": deployment.name, "labels": labels(deployment, "namespace") | POD_SECURITY_LEVEL},
    }


def fill_script(deployment: Deployment) -> File:
    name = deployment.name
    named = {"namespace": name, "pod": f"{name}-model-loader", "claim": claim(deployment)}
    return File(text=render("kubernetes/fill-model.sh", **named, contents=contents(deployment)), executable=True)


def model_loader(deployment: Deployment) -> dict[str, Any]:
    """In the engine's own image: no other is pulled, and the node has it when the engine comes."""
    volume = {"name": "volume", "persistentVolumeClaim": {"claimName": claim(deployment)}}
    container = {
        "name": "loader",
        "image": image_of(deployment).name,
        "command": ["sleep", str(LOADED_IN_S)],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "securityContext": SECURITY,
        "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(deployment, "-model-loader", component="model-loader"),
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LOADED_IN_S,
            "automountServiceAccountToken": False,
            "securityContext": POD_SECURITY,
            "containers": [container],
            "volumes": [volume],
        },
    }


def image_files(deployment: Deployment) -> dict[str, File]:
    """What images are built from that nobody publishes; a cluster gets them through a registry."""
    image = image_of(deployment)
    own = {} if image.build is None else {"Dockerfile": image.build, **image.context}
    written = {f"image/{name}": File(text=text) for name, text in own.items()}
    return written | ({"canary/Dockerfile": dockerfile(deployment)} if deployment.wishes.monitoring else {})


def url(deployment: Deployment) -> str:
    """Through the Ingress, or ``kubectl port-forward service/NAME PORT:8000``."""
    wishes = deployment.wishes
    if wishes.domain:
        return f"http{'s' * wishes.tls}://{host(deployment)}/v1"
    return f"http://127.0.0.1:{wishes.port}/v1"


def before(deployment: Deployment) -> tuple[Step, ...]:
    own = [(image_of(deployment).name, "image")] if image_of(deployment).build is not None else []
    once = "the model into a volume of its own: once for these weights"
    fill: Step = (("./manifests/fill-model.sh",), f"{once}; IMAGE=… is the image's address" if own else once)
    push = f"then push it, and name its address under images in {OVERLAY} (kustomization.yaml here says how)"
    watched: list[Step] = []
    if deployment.wishes.monitoring:
        own.append((canary.image(deployment), "canary"))
        watched.append(wheel(deployment))
    return (*watched, *((("docker", "build", "--tag", name, folder), push) for name, folder in own), fill)


def after(deployment: Deployment) -> tuple[Step, ...]:
    place = ("kubectl", "--namespace", deployment.name)
    rolled: Step = ((*place, "rollout", "status", f"deployment/{deployment.name}"), "wait until it answers")
    former = "what a former configuration had and this one has not: apply takes nothing away"
    others = unwanted(deployment)
    gone: tuple[Step, ...] = (((*place, "delete", "--ignore-not-found", *others), former),) if others else ()
    if deployment.wishes.domain:
        return (*gone, rolled)
    ports = f"{deployment.wishes.port}:{ENGINE_PORT}"
    return (*gone, rolled, ((*place, "port-forward", f"service/{deployment.name}", ports), "reach it from here"))


def unwanted(deployment: Deployment) -> list[str]:
    """Objects of kinds that every cluster knows which another configuration of this name has, and this one has not."""
    scaled, watched = autoscaler(deployment), deployment.wishes.monitoring
    there = {
        "ingress/{}": bool(deployment.wishes.domain),
        "horizontalpodautoscaler/{}": scaled == "hpa",
        "service/{}-metrics": bool(deployment.engine.metrics_path),
        "configmap/{}-files": bool(launch_of(deployment).files),
        "configmap/{}-dashboard": watched,
        **{f"{kind}/{{}}-canary": watched for kind in ("deployment", "service", "configmap")},
    }
    return [name.format(deployment.name) for name, wanted in there.items() if not wanted]


def doubts(deployment: Deployment) -> tuple[str, ...]:
    if deployment.wishes.autoscaler == "none" or autoscaler(deployment) != "none":
        return ()
    if deployment.wishes.monitoring:
        return (
            "nothing scales the replicas: the engine tells nothing to scale by, or nothing was measured to hold it against",
        )
    return ("nothing scales the replicas: an autoscaler asks for the load that is scraped with --monitoring",)


TARGET = Target(
    name="kubernetes",
    title="Kubernetes",
    refusal=refusal,
    files=files,
    start=lambda deployment: ("kubectl", "apply", "-k", "."),
    url=url,
    before=before,
    after=after,
    doubts=doubts,
    secrets=lambda deployment: "Secrets of the namespace",
)
