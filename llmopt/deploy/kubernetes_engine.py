"""The engine in a cluster: its pods, what they mount, and how one is seen to be well.

The parts are functions of their own since the Helm chart's values are made of the same ones (``helm.py``).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from llmopt.core.domain import stable_hash
from llmopt.core.errors import UsageError
from llmopt.deploy.kubernetes_objects import (
    GIB,
    USER_ID,
    evidence,
    label_value,
    labels,
    literals,
    metadata,
    quantity,
    selector,
    variables,
)
from llmopt.deploy.plan import ENGINE_PORT, MODEL_IN_CONTAINER, Deployment, Image, Launch
from llmopt.deploy.probe import completion_words

CACHE = "/cache"  # HOME of a user who has none in the image: compiled graphs go there
CACHE_BYTES, TEMPORARY_BYTES = 8 * GIB, 2 * GIB  # a pod that fills its node's disk would take its neighbours along
# vLLM's is the greediest: an HTTP server and an engine core, each spinning, and a worker a GPU.
CORES_BESIDE_GPUS = 2
FIRST_COMPLETION_S = 60  # the very first one compiles: 50 s were seen on two cores (transformers 5.17)
ASK_EVERY_S = 10
ROUTES_S = 10  # until every node's proxy and every gateway has taken a pod out that is about to stop
LONGEST_DRAIN_S = 600
KEY_LENGTH = 10  # hex digits of the hash that stands for weights in names


def words(deployment: Deployment) -> dict[str, list[str]]:
    """The measured command line as a container's ``command`` and ``args``."""
    image, argv = image_of(deployment), list(launch_of(deployment).argv)
    if image.entrypoint is None:
        return {"command": [], "args": argv}
    return {"command": [*([image.entrypoint] if image.entrypoint else []), *argv], "args": []}


def image_of(deployment: Deployment) -> Image:
    """Raises UsageError where the engine has none."""
    if deployment.engine.image is None:
        raise UsageError(f"no image of {deployment.engine.title} is known", hint="--target systemd, or shell")
    return deployment.engine.image


def launch_of(deployment: Deployment) -> Launch:
    """Raises UsageError where the engine runs in no container."""
    if deployment.engine.inside is None:
        raise UsageError(f"{deployment.engine.title} runs in no container", hint="--target systemd, or shell")
    return deployment.engine.inside


def environment(deployment: Deployment) -> dict[str, str]:
    """What was measured with, and a home: torch asks for the name of its user, whom the image may not know."""
    home = {"HOME": CACHE, "USER": deployment.name, "LOGNAME": deployment.name}
    return home | dict(launch_of(deployment).environment)


def resources(deployment: Deployment) -> dict[str, Any]:
    """Memory: as much as it may take is kept for it. No limit of cores: being throttled shows as stalls in streams."""
    engine, memory = deployment.engine, deployment.memory_limit_bytes
    cores = engine.threads if engine.threads and not engine.gpus else CORES_BESIDE_GPUS + engine.gpus
    limits: dict[str, Any] = {} if memory is None else {"memory": quantity(memory)}
    if engine.gpus:
        limits["nvidia.com/gpu"] = str(engine.gpus)
    return {"requests": {"cpu": str(cores), **limits}, "limits": limits}


def probes(deployment: Deployment) -> dict[str, Any]:
    """A completion until it is up; then the cheap path, since a completion would queue behind users' under full load."""
    asking = completion_words(deployment.engine, timeout_s=FIRST_COMPLETION_S)
    health = {"httpGet": {"path": deployment.engine.health_path, "port": "http"}}
    return {
        "startupProbe": {
            "exec": {"command": asking},
            "periodSeconds": ASK_EVERY_S,
            "timeoutSeconds": FIRST_COMPLETION_S,
            "failureThreshold": math.ceil(deployment.ready_timeout_s / ASK_EVERY_S),
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
        # A restart costs the whole loading of the model: a minute without an answer, not one slow one.
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def drain_s(deployment: Deployment) -> int:
    """How long a pod goes on answering after it was told to stop: engines cut their streams at the signal itself.

    The time until nobody sends it anything, and twice the slowest answer that was measured.
    """
    figures, workload = deployment.evidence.figures, deployment.evidence.workload
    known = [f.value for name in ("e2e_p99", "e2e_p95") if (f := figures.get(name)) and f.value is not None]
    ttft, tpot = (figures[name].value if name in figures else None for name in ("ttft_p95", "tpot_p95"))
    if not known and ttft is not None and tpot is not None:
        known = [ttft + tpot * float(workload.get("output_tokens") or 0)]
    slowest = max(known) * 2 if known else float(workload.get("request_timeout_s") or LONGEST_DRAIN_S)
    return min(LONGEST_DRAIN_S, ROUTES_S + math.ceil(slowest))


def strategy(deployment: Deployment) -> dict[str, Any]:
    """With a spare replica, one goes before the new one comes: a surge would wait for a GPU that nobody may have."""
    in_place = bool(deployment.engine.gpus and deployment.capacity.spare)
    rolling = {"maxUnavailable": 1, "maxSurge": 0} if in_place else {"maxUnavailable": 0, "maxSurge": 1}
    return {"type": "RollingUpdate", "rollingUpdate": rolling}


def affinity(deployment: Deployment) -> dict[str, Any]:
    """The GPU that was measured, where nodes are labelled with theirs (NVIDIA's feature discovery): wished, not required."""
    gpus = deployment.evidence.machine.get("gpus") or ()
    product = label_value(str(gpus[0])) if gpus and deployment.engine.gpus else ""
    if not product:
        return {}
    wanted = {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": [product]}]}
    preferred = [{"weight": 100, "preference": wanted}]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def tolerations(deployment: Deployment) -> list[dict[str, str]]:
    return [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if deployment.engine.gpus else []


POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",  # else every start walks through the whole model
    "seccompProfile": {"type": "RuntimeDefault"},
}
SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def spread(deployment: Deployment) -> list[dict[str, Any]]:
    """One node lost, or one zone, is one replica lost where there is the room."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(deployment)},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def file_keys(deployment: Deployment) -> dict[str, str]:
    """Path of a file of the engine's → its key in the ConfigMap, which may hold no slash."""
    return {path: f"file-{number}" for number, path in enumerate(sorted(launch_of(deployment).files))}


def files_checksum(deployment: Deployment) -> str:
    """Of what the pods read at their start: they are replaced when it changes."""
    files = launch_of(deployment).files
    return hashlib.sha256("".join(f"{path}\n{files[path]}\n" for path in sorted(files)).encode()).hexdigest()


def claim(deployment: Deployment) -> str:
    """Other weights have another: a pod of the former configuration, and a rollback, find theirs, whole, and no claim is ever
    asked to become smaller, which Kubernetes refuses.
    """
    return f"{deployment.name}-model-{weights_key(deployment)}"


def weights_key(deployment: Deployment) -> str:
    return stable_hash([folder for _, folder, _ in contents(deployment)], KEY_LENGTH)


def volumes(deployment: Deployment) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each volume with its mounts."""
    shared = image_of(deployment).shared_memory_bytes
    model = {"claimName": claim(deployment), "readOnly": True}
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        (
            {"name": "model", "persistentVolumeClaim": model},
            [
                {"name": "model", "mountPath": inside, "subPath": folder, "readOnly": True}
                for _, folder, inside in contents(deployment)
            ],
        ),
        (
            {"name": "cache", "emptyDir": {"sizeLimit": quantity(CACHE_BYTES, GIB)}},
            [{"name": "cache", "mountPath": CACHE}],
        ),
        (
            {"name": "tmp", "emptyDir": {"sizeLimit": quantity(TEMPORARY_BYTES, GIB)}},
            [{"name": "tmp", "mountPath": "/tmp"}],
        ),
    ]
    if shared:
        memory = {"medium": "Memory", "sizeLimit": quantity(shared, GIB)}
        found.append(({"name": "shm", "emptyDir": memory}, [{"name": "shm", "mountPath": "/dev/shm"}]))
    if keys := file_keys(deployment):
        mounts = [{"name": "files", "mountPath": p, "subPath": k, "readOnly": True} for p, k in keys.items()]
        found.append(({"name": "files", "configMap": {"name": f"{deployment.name}-files"}}, mounts))
    return found


def contents(deployment: Deployment) -> list[tuple[str, str, str]]:
    """What the claim holds: (place on the machine that measured, its name in the volume, place in the container).

    By name, too, other weights are others: a claim of one's own may hold several (the chart's ``existingClaim``).
    """
    engine = deployment.engine

    def named(kind: str, place: str) -> str:
        return f"{kind}-{stable_hash(engine.weights.get(place, place), KEY_LENGTH)}"

    beside = [(place, named("beside", place), inside) for place, inside in engine.mounts]
    return [(engine.artifact, named("model", engine.artifact), MODEL_IN_CONTAINER), *beside]


def container(deployment: Deployment) -> dict[str, Any]:
    told, asked = words(deployment), probes(deployment)
    asked["startupProbe"]["exec"]["command"] = literals(asked["startupProbe"]["exec"]["command"])
    return {
        "name": "engine",
        "image": image_of(deployment).name,
        "imagePullPolicy": "IfNotPresent",
        **{name: literals(argv) for name, argv in told.items() if argv},
        "env": variables(environment(deployment)),
        # Nothing needs it: a place for what must not stand in a file here (a token, a key).
        "envFrom": [{"secretRef": {"name": f"{deployment.name}-env", "optional": True}}],
        "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
        "resources": resources(deployment),
        **asked,
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(drain_s(deployment))]}}},
        "securityContext": SECURITY,
        "volumeMounts": [mount for _, mounts in volumes(deployment) for mount in mounts],
    }


def engine_deployment(deployment: Deployment) -> dict[str, Any]:
    placing = {"affinity": affinity(deployment), "tolerations": tolerations(deployment)}
    pod = {
        "automountServiceAccountToken": False,
        # A Service named vllm would set VLLM_PORT=tcp://…, which vLLM takes for its own.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_s(deployment) + 30,
        "securityContext": POD_SECURITY,
        **{name: value for name, value in placing.items() if value},
        "topologySpreadConstraints": spread(deployment),
        "containers": [container(deployment)],
        "volumes": [volume for volume, _ in volumes(deployment)],
    }
    checksum = {"llmopt/files": files_checksum(deployment)} if launch_of(deployment).files else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, annotations=evidence(deployment)),
        "spec": {
            "replicas": deployment.replicas,
            "selector": {"matchLabels": selector(deployment)},
            "strategy": strategy(deployment),
            "progressDeadlineSeconds": progress_s(deployment),
            "template": {
                "metadata": {"labels": labels(deployment), **({"annotations": checksum} if checksum else {})},
                "spec": pod,
            },
        },
    }


def progress_s(deployment: Deployment) -> int:
    """Ten minutes for the image, which may have 10 GB, and then the start."""
    return 600 + math.ceil(deployment.ready_timeout_s)


def config_map(deployment: Deployment) -> dict[str, Any]:
    files = launch_of(deployment).files
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(deployment, "-files"),
        "data": {key: files[path] for path, key in file_keys(deployment).items()},
    }


def claim_bytes(deployment: Deployment) -> int:
    """The model and what lies beside it, a tenth above them for what the file system takes, and a GiB."""
    return int((deployment.engine.artifact_bytes + deployment.engine.mounts_bytes) * 1.1) + GIB


def volume_claim(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(deployment, claim(deployment).removeprefix(deployment.name)),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": quantity(claim_bytes(deployment), GIB)}},
        },
    }
