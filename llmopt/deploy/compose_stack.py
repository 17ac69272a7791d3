"""What stands beside engines and gateway in docker compose: LiteLLM and its cache, Prometheus, Alertmanager, Grafana, the canary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import stable_hash
from llmopt.deploy.alertmanager import WEBHOOK, alertmanager_config
from llmopt.deploy.canary import DOCUMENT, EVERY_S, dockerfile
from llmopt.deploy.compose_service import bind, escaped, hardened, published
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.grafana import DASHBOARDS, provisioning
from llmopt.deploy.litellm import litellm_config, litellm_dockerfile
from llmopt.deploy.nginx import asks_for_keys
from llmopt.deploy.plan import (
    ALERTMANAGER_PORT,
    CANARY_PORT,
    ENGINE_PORT,
    GPU_EXPORTER_PORT,
    GRAFANA_PORT,
    LITELLM_PORT,
    MODEL_IN_CONTAINER,
    PROMETHEUS_PORT,
    REDIS_PORT,
    Deployment,
    File,
)
from llmopt.deploy.prometheus import prometheus_config
from llmopt.deploy.rules import rules, seconds
from llmopt.deploy.templates import render

REDIS = "redis:7.4.2-alpine"
PROMETHEUS = "prom/prometheus:v3.2.1"
ALERTMANAGER = "prom/alertmanager:v0.28.1"
GRAFANA = "grafana/grafana:11.5.2"
GPU_EXPORTER = "nvcr.io/nvidia/k8s/dcgm-exporter:3.3.9-3.6.1-ubuntu22.04"
GATEWAY_INSIDE = 8080
CACHE_BYTES = 256 * 1024**2
CANARY = "canary"  # a service, and the profile that it is started by
# Each of its probes would be refused, and somebody called.
WITH_A_KEY = 'test -n "$LLMOPT_API_KEY" || { echo "CANARY_API_KEY is empty: .env" >&2; exit 1; }; exec "$@"'
KEPT = "15d"  # of what Prometheus has seen: five times the longest window of a rule


@dataclass(kw_only=True)
class Stack:
    """What services want from the rest of the file; ``wanted``: variables of ``.env``, with what they are for; ``defaults``:
    those that have a value without it, (value, what it is).
    """

    deployment: Deployment
    volumes: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, tuple[str, str]] = field(default_factory=dict)

    def required(self, name: str, why: str) -> str:
        """A variable without which compose does not start, and says so."""
        self.wanted[name] = why
        return f"${{{name}:?set it in .env}}"

    def page(self, program: str, port: int) -> list[dict[str, Any]]:
        """Ports of a program with a page for this machine; who has the port of its own already names another one."""
        name = f"{program.upper()}_PORT"
        self.defaults[name] = (str(port), f"of {program.capitalize()}'s page, on 127.0.0.1")
        return [published(port, f"${{{name}:-{port}}}")]

    def networks(self) -> dict[str, Any]:
        """Only what has a port of this machine, or posts alerts, is on ``edge``: an engine reaches nobody."""
        wishes = self.deployment.wishes
        wanted = {"proxy": wishes.gateway == "litellm", "cache": wishes.cache, "monitoring": wishes.monitoring}
        inner = ["engines", *(name for name, there in wanted.items() if there)]
        return {"edge": {}} | {name: {"internal": True} for name in inner}

    def environment_example(self) -> str:
        """What ``.env`` needs, those of the gateway first."""
        if self.deployment.wishes.tls:
            self.wanted["TLS_FOLDER"] = "folder with tls.crt (the chain) and tls.key, readable for user 101"
        return render("env.example", wanted=self.wanted, defaults=self.defaults)


def beside(stack: Stack, services: dict[str, Any], made: dict[str, File]) -> None:
    """Add what was asked for to ``services``, and the files that it reads to ``made``."""
    wishes = stack.deployment.wishes
    replicas = [name for name in services if name.startswith("engine-")]
    if wishes.gateway == "litellm":
        services["litellm"] = litellm(stack, replicas, made)
        if wishes.cache:
            services["redis"] = redis()
    if wishes.monitoring:
        services[CANARY] = canary(stack, made)
        services["prometheus"] = prometheus(stack, replicas, made)
        services["alertmanager"] = alertmanager(stack, made)
        services["grafana"] = grafana(stack, made)
        if stack.deployment.engine.gpus:
            services["gpu-exporter"] = gpu_exporter()


def litellm(stack: Stack, replicas: list[str], made: dict[str, File]) -> dict[str, Any]:
    """Built here: the version that was tried, and nothing that is not needed."""
    cache = stack.deployment.wishes.cache is not None
    backends = [f"http://{name}:{ENGINE_PORT}/v1" for name in replicas]
    config = litellm_config(stack.deployment, backends=backends, redis=f"redis:{REDIS_PORT}" if cache else None)
    made["litellm/config.yaml"] = File(text=yaml_text(config))
    made["litellm/Dockerfile"] = File(text=(recipe := litellm_dockerfile()))
    alive = "import urllib.request as u; u.urlopen('http://127.0.0.1:4000/health/liveliness', timeout=5)"
    key = stack.required("LITELLM_MASTER_KEY", "what clients send as Authorization: Bearer …; begins with sk-")
    return {
        # By its recipe: compose builds an image that is not there, and none anew whose Dockerfile has changed.
        "image": f"{stack.deployment.name}-litellm:{stable_hash(recipe, 12)}",
        "build": {"context": "./litellm"},
        "command": ["--config", "/etc/litellm/config.yaml", "--host", "0.0.0.0", "--port", str(LITELLM_PORT)],
        # Prices of other people's models are not fetched when it starts.
        "environment": {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": "/tmp"},
        **hardened(),
        "tmpfs": ["/tmp:mode=1777"],
        "volumes": [bind("./litellm/config.yaml", "/etc/litellm/config.yaml")],
        "networks": ["proxy", "engines", *(["cache"] if cache else [])],
        "depends_on": {name: {"condition": "service_started"} for name in (*replicas, *(["redis"] if cache else []))},
        "healthcheck": {
            "test": ["CMD", "python3", "-c", alive], "interval": "10s", "timeout": "10s", "retries": 3, "start_period": "60s",
        },
    }  # fmt: skip


def redis() -> dict[str, Any]:
    """Answers that may be lost: nothing is written to disk, and the least used go when it is full."""
    words = ["redis-server", "--save", "", "--appendonly", "no", "--maxmemory", str(CACHE_BYTES)]
    return {
        "image": REDIS,
        "entrypoint": [*words, "--maxmemory-policy", "allkeys-lru", "--port", str(REDIS_PORT)],
        "user": "999:1000",
        **hardened(),
        "tmpfs": ["/data:mode=1777"],
        "networks": ["cache"],
        "deploy": {"resources": {"limits": {"memory": str(2 * CACHE_BYTES)}}},
        "healthcheck": {"test": ["CMD", "redis-cli", "ping"], "interval": "10s", "timeout": "5s", "retries": 3},
    }


def canary(stack: Stack, made: dict[str, File]) -> dict[str, Any]:
    """``llmopt watch``, through the gateway, as the deployment's own description tells what was measured.

    In a profile of its own: compose builds every image before it starts anything, and this one wants an llmopt that can be
    installed, which must not keep engines from starting.
    """
    deployment = stack.deployment
    package = f"llmopt=={deployment.llmopt_version}"
    scheme, host = "https" if deployment.wishes.tls else "http", gateway_name(deployment)
    made["canary/Dockerfile"] = dockerfile(deployment)
    environment = {"HOME": "/tmp"}
    words = [
        "llmopt",
        "watch",
        "/deployment",
        "--url",
        f"{scheme}://{host}:{GATEWAY_INSIDE}/v1",
        "--tokenizer",
        MODEL_IN_CONTAINER,
    ]
    if deployment.wishes.gateway == "litellm":
        environment["LLMOPT_API_KEY"] = "${LITELLM_MASTER_KEY:?set it in .env}"
    elif asks_for_keys(deployment):
        stack.wanted["CANARY_API_KEY"] = "one of the keys in that file, for the canary"
        environment["LLMOPT_API_KEY"] = "${CANARY_API_KEY:-}"
        words = ["sh", "-c", escaped(WITH_A_KEY), CANARY, *words]
    stack.wanted["COMPOSE_PROFILES"] = f"{CANARY}, once its image can be built: then it starts with the rest"
    stack.wanted["LLMOPT"] = (
        f"what pip installs for it where no wheel lies in canary/ (canary/Dockerfile); {package} where it is empty"
    )
    return {
        "image": f"{deployment.name}-canary",
        "profiles": [CANARY],
        "build": {"context": "./canary", "args": {"LLMOPT": f"${{LLMOPT:-{package}}}"}},
        "entrypoint": [*words, "--host", "0.0.0.0", "--port", str(CANARY_PORT), "--every", str(EVERY_S)],
        "environment": environment,
        "user": "65534:65534",
        **hardened(),
        "tmpfs": ["/tmp:mode=1777"],
        "volumes": [
            bind(f"./{DOCUMENT}", f"/deployment/{DOCUMENT}"),
            bind(deployment.engine.artifact, MODEL_IN_CONTAINER),
        ],
        "networks": ["monitoring"],
        "depends_on": {"gateway": {"condition": "service_healthy"}},
    }


def gateway_name(deployment: Deployment) -> str:
    """What the canary calls it: by the name in its certificate, where there is one."""
    return deployment.wishes.domain or "gateway"


def prometheus(stack: Stack, replicas: list[str], made: dict[str, File]) -> dict[str, Any]:
    deployment = stack.deployment
    targets = {
        "engine": [f"{name}:{ENGINE_PORT}" for name in replicas],
        "canary": [f"canary:{CANARY_PORT}"],
        "gpu": [f"gpu-exporter:{GPU_EXPORTER_PORT}"] if deployment.engine.gpus else [],
    }
    config = prometheus_config(
        deployment, targets=targets, rules="/etc/prometheus/rules.yml", alertmanager=f"alertmanager:{ALERTMANAGER_PORT}"
    )
    made["prometheus/prometheus.yml"] = File(text=yaml_text(config))
    made["prometheus/rules.yml"] = File(text=yaml_text(rules(deployment)))
    stack.volumes.append("prometheus")
    return {
        "image": PROMETHEUS,
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={KEPT}",
        ],
        **hardened(),
        "volumes": [
            bind("./prometheus/prometheus.yml", "/etc/prometheus/prometheus.yml"),
            bind("./prometheus/rules.yml", "/etc/prometheus/rules.yml"),
            volume("prometheus", "/prometheus"),
        ],
        "networks": ["edge", "engines", "monitoring"],
        "ports": stack.page("prometheus", PROMETHEUS_PORT),
        "healthcheck": ready(PROMETHEUS_PORT),
    }


def alertmanager(stack: Stack, made: dict[str, File]) -> dict[str, Any]:
    """The address that it posts to is a file on this machine: compose cannot write a secret into a read-only container."""
    made["alertmanager/alertmanager.yml"] = File(text=yaml_text(alertmanager_config(stack.deployment)))
    why = "a file, readable for user 65534, with the address that alerts are posted to (a webhook of Alertmanager)"
    name = WEBHOOK.rpartition("/")[2]
    stack.secrets[name] = stack.required("ALERT_WEBHOOK_URL_FILE", why)
    stack.volumes.append("alertmanager")
    return {
        "image": ALERTMANAGER,
        "command": ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"],
        **hardened(),
        "secrets": [name],
        "volumes": [
            bind("./alertmanager/alertmanager.yml", "/etc/alertmanager/alertmanager.yml"),
            volume("alertmanager", "/alertmanager"),
        ],
        "networks": ["edge", "monitoring"],
        "ports": stack.page("alertmanager", ALERTMANAGER_PORT),
        "healthcheck": ready(ALERTMANAGER_PORT),
    }


def grafana(stack: Stack, made: dict[str, File]) -> dict[str, Any]:
    for path, file in provisioning(stack.deployment, prometheus_url=f"http://prometheus:{PROMETHEUS_PORT}").items():
        made[f"grafana/{path}"] = file
    stack.volumes.append("grafana")
    return {
        "image": GRAFANA,
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD": stack.required("GRAFANA_ADMIN_PASSWORD", "of the user admin of Grafana"),
            "GF_PATHS_PROVISIONING": "/etc/grafana/provisioning",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_USERS_ALLOW_SIGN_UP": "false",
        },
        **hardened(),
        "tmpfs": ["/tmp:mode=1777"],
        "volumes": [
            bind("./grafana/provisioning", "/etc/grafana/provisioning"),
            bind("./grafana/dashboards", DASHBOARDS),
            volume("grafana", "/var/lib/grafana"),
        ],
        "networks": ["edge", "monitoring"],
        "ports": stack.page("grafana", GRAFANA_PORT),
        "depends_on": {"prometheus": {"condition": "service_started"}},
    }


def gpu_exporter() -> dict[str, Any]:
    """NVIDIA's; it reads the driver's counters, for which it wants a capability that nothing else here has."""
    return {
        "image": GPU_EXPORTER,
        **hardened(),
        "cap_add": ["SYS_ADMIN"],
        "tmpfs": ["/tmp:mode=1777", "/run:mode=1777"],
        "networks": ["monitoring"],
        "deploy": {
            "resources": {"reservations": {"devices": [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]}}
        },
    }


def volume(name: str, target: str) -> dict[str, Any]:
    return {"type": "volume", "source": name, "target": target}


def ready(port: int) -> dict[str, Any]:
    ask = ["CMD", "wget", "-q", "-O", "/dev/null", f"http://127.0.0.1:{port}/-/ready"]
    return {"test": ask, "interval": "10s", "timeout": "5s", "retries": 3, "start_period": seconds(30)}
