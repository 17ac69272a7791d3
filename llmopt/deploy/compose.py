"""docker compose: the replicas behind nginx, and beside them what was asked for.  This file is the engine's and the gateway's half;
``compose_stack`` has those that stand beside them.

Replicas are services of their own names, and not one service with ``deploy.replicas``: nginx resolves names when it starts,
so that each needs one of its own for ``least_conn`` to count its connections; Prometheus then knows which one is which, each
gets GPUs of its own (``count`` would give the first ones to all), and one can be replaced while the others answer.
"""

from __future__ import annotations

from typing import Any

from llmopt.deploy import Step, Target
from llmopt.deploy.canary import DOCUMENT, told, wheel
from llmopt.deploy.compose_service import bind, escaped, hardened, label_files, published
from llmopt.deploy.compose_stack import CANARY, GATEWAY_INSIDE, Stack, beside, gateway_name
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.nginx import CERTIFICATE, CERTIFICATE_KEY, KEY_LINE, asks_for_keys, nginx_conf, read_timeout
from llmopt.deploy.plan import (
    ENGINE_PORT,
    LITELLM_PORT,
    MODEL_IN_CONTAINER,
    Deployment,
    File,
    Image,
    Launch,
)
from llmopt.deploy.probe import completion_words, health_words
from llmopt.deploy.shell import url
from llmopt.deploy.templates import render

# Runs without root and read-only when it is given a folder for its temporary files (-p).
NGINX = "nginx:1.28.0-alpine"
NGINX_USER = "101:101"
KEYS = "/etc/nginx/keys.conf"
ENGINE_USER = "${LLMOPT_USER:-1000:1000}"
FIRST_ANSWER_S = 60.0  # transformers took 50 s for its first request on a processor (5.17)
ANSWERED = "/tmp/answered"
HEALTH_INSIDE = "/llmopt-health.sh"
# Everything that engines write beside their work, in memory: the container itself is read-only.
SCRATCH = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/cache", "USER": "llmopt", "LOGNAME": "llmopt"}
HEAD = (
    "Written by llmopt {version}. Start: {start} (README.md says more).",
    "Each $$ is one $: compose would take a single one for the name of a variable.",
)


def files(deployment: Deployment) -> dict[str, File]:
    """``compose.yaml`` and everything that it mounts or builds."""
    stack = Stack(deployment=deployment)
    made: dict[str, File] = {}
    services = {**engines(deployment, made), **gateway(stack, made)}
    beside(stack, services, made)
    label_files(services, made | {DOCUMENT: File(text=told(deployment))})
    document: dict[str, Any] = {"name": deployment.name, "services": services, "networks": stack.networks()}
    if stack.volumes:
        document["volumes"] = {name: {} for name in stack.volumes}
    if stack.secrets:
        document["secrets"] = {name: {"file": path} for name, path in stack.secrets.items()}
    head = [line.format(version=deployment.llmopt_version, start=" ".join(start(deployment))) for line in HEAD]
    made["compose.yaml"] = File(text=yaml_text(document, head=[*head, *gpu_words(deployment)]))
    made[".env.example"] = File(text=stack.environment_example())
    return made


def refusal(deployment: Deployment) -> str | None:
    engine, wishes = deployment.engine, deployment.wishes
    if engine.image is None or engine.inside is None:
        return f"there is no image of {engine.title} that llmopt knows"
    if wishes.cache and wishes.gateway != "litellm":
        return "the response cache is LiteLLM's: it goes with --gateway litellm"
    return None


def engines(deployment: Deployment, made: dict[str, File]) -> dict[str, Any]:
    engine = deployment.engine
    assert engine.image is not None
    assert engine.inside is not None
    image, launch = engine.image, engine.inside
    for name, text in (({"Dockerfile": image.build} | dict(image.context)) if image.build else {}).items():
        made[f"engine/{name}"] = File(text=text)
    made["health.sh"] = File(text=health_script(deployment))
    mounts = [
        bind(engine.artifact, MODEL_IN_CONTAINER),
        bind("./health.sh", HEALTH_INSIDE),
        *(bind(here, there) for here, there in engine.mounts),
    ]
    for number, (path, text) in enumerate(launch.files.items()):
        kept = f"engine/files/{number}-{path.rpartition('/')[2]}"
        made[kept] = File(text=text)
        mounts.append(bind(f"./{kept}", path))
    return {replica(number): engine_service(deployment, number, mounts) for number in range(deployment.replicas)}


def replica(number: int) -> str:
    return f"engine-{number + 1}"


def addresses(deployment: Deployment) -> list[str]:
    return [f"{replica(number)}:{ENGINE_PORT}" for number in range(deployment.replicas)]


def engine_service(deployment: Deployment, number: int, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    engine = deployment.engine
    image, launch = engine.image, engine.inside
    assert image is not None
    assert launch is not None
    service: dict[str, Any] = {
        "image": image.name,
        **({"build": {"context": "./engine"}} if image.build else {}),
        **started(image, launch),
        "environment": {name: escaped(value) for name, value in (SCRATCH | dict(launch.environment)).items()},
        "user": ENGINE_USER,
        **hardened(),
        # Kernels that are compiled at the start are loaded from here: it must be allowed to hold programs.
        "tmpfs": ["/tmp:exec,mode=1777"],
        "volumes": mounts,
        "networks": ["engines"],
        "healthcheck": {
            "test": ["CMD", "sh", HEALTH_INSIDE],
            "interval": "10s",
            "timeout": f"{FIRST_ANSWER_S + 5:.0f}s",
            "retries": 3,
            "start_period": f"{deployment.ready_timeout_s:.0f}s",
        },
        # Answers that are being written are written to their end.
        "stop_grace_period": f"{min(read_timeout(deployment)[0], 120)}s",
    }
    if image.shared_memory_bytes:
        service["shm_size"] = image.shared_memory_bytes
    limit = deployment.memory_limit_bytes
    limits = {} if limit is None else {"memory": str(limit)}  # of main memory, also where GPUs hold the model
    resources = {"limits": limits, "reservations": own_gpus(deployment, number)}
    if kept := {kind: what for kind, what in resources.items() if what}:
        service["deploy"] = {"resources": kept}
    return service


def started(image: Image, launch: Launch) -> dict[str, Any]:
    """The measured words. With the image's own entry point taken away they are the entry point, so that nothing goes before."""
    words = [escaped(word) for word in launch.argv]
    if image.entrypoint == "":
        return {"entrypoint": words}
    return {**({"entrypoint": [escaped(image.entrypoint)]} if image.entrypoint else {}), "command": words}


def health_script(deployment: Deployment) -> str:
    return render(
        "health.sh",
        answered=ANSWERED,
        first=completion_words(deployment.engine, timeout_s=FIRST_ANSWER_S),
        later=health_words(deployment.engine, timeout_s=5),
    )


def own_gpus(deployment: Deployment, number: int) -> dict[str, Any]:
    gpus = deployment.engine.gpus
    own = [str(number * gpus + i) for i in range(gpus)]
    return {"devices": [{"driver": "nvidia", "device_ids": own, "capabilities": ["gpu"]}]} if own else {}


def gpu_words(deployment: Deployment) -> list[str]:
    gpus = deployment.engine.gpus * deployment.replicas
    return (
        [f"{deployment.replicas} replicas of {deployment.engine.gpus} GPU(s): this machine needs {gpus}."]
        if gpus
        else []
    )


def gateway(stack: Stack, made: dict[str, File]) -> dict[str, Any]:
    """nginx, on all addresses only where a domain was asked for, and then it asks for a key: without one it is for this machine."""
    deployment, wishes = stack.deployment, stack.deployment.wishes
    through = wishes.gateway == "litellm"
    upstreams = [f"litellm:{LITELLM_PORT}"] if through else addresses(deployment)
    made["nginx/nginx.conf"] = File(
        text=nginx_conf(
            deployment,
            upstreams=upstreams,
            listen=f"0.0.0.0:{GATEWAY_INSIDE}",
            certificate=(CERTIFICATE, CERTIFICATE_KEY),
            keys=KEYS if asks_for_keys(deployment) else None,
        )
    )
    volumes = [bind("./nginx/nginx.conf", "/etc/nginx/nginx.conf")]
    if wishes.tls:
        volumes.append(bind("${TLS_FOLDER:?set it in .env}", CERTIFICATE.rpartition("/")[0], variable=True))
    if asks_for_keys(deployment):
        why = f"a file, readable for user 101, with a line for each key that may ask: {KEY_LINE}"
        volumes.append(bind(stack.required("API_KEYS_FILE", why), KEYS, variable=True))
    scheme = "https" if wishes.tls else "http"
    ask = ["wget", "-q", "-O", "/dev/null", "--no-check-certificate", f"{scheme}://127.0.0.1:{GATEWAY_INSIDE}/healthz"]
    before = ["litellm"] if through else [replica(number) for number in range(deployment.replicas)]
    return {
        "gateway": {
            "image": NGINX,
            "entrypoint": ["nginx", "-e", "stderr", "-p", "/tmp", "-c", "/etc/nginx/nginx.conf"],
            "user": NGINX_USER,
            **hardened(),
            "tmpfs": ["/tmp:mode=1777"],
            "volumes": volumes,
            "ports": [published(GATEWAY_INSIDE, wishes.port, everywhere=wishes.domain is not None)],
            "networks": {
                "edge": {},
                "proxy" if through else "engines": {},
                **({"monitoring": {"aliases": [gateway_name(deployment)]}} if wishes.monitoring else {}),
            },
            # It looks names up when it starts, so it starts after them, and again when compose makes one of them anew.
            "depends_on": {name: {"condition": "service_started", "restart": True} for name in before},
            "healthcheck": {
                "test": ["CMD", *ask],
                "interval": "10s",
                "timeout": "5s",
                "retries": 3,
                "start_period": "10s",
            },
        }
    }


def start(deployment: Deployment) -> tuple[str, ...]:
    """A replica that is wanted no more would keep its GPUs."""
    return ("docker", "compose", "up", "--detach", "--wait", "--remove-orphans")


def after(deployment: Deployment) -> tuple[Step, ...]:
    if not deployment.wishes.monitoring:
        return ()
    words = ("docker", "compose", "up", "--detach", "--build", "--no-deps", CANARY)
    return (
        wheel(deployment),
        (words, "the canary; from then on COMPOSE_PROFILES=canary in .env starts it with the rest"),
    )


TARGET = Target(name="compose", title="docker compose", refusal=refusal, files=files, start=start, url=url, after=after)
