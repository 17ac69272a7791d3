"""``run.sh``: everything on one machine, as processes of whoever starts it; for those who run nothing.

What nginx, Prometheus and the others read lies beside it and names only paths of this folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from llmopt.deploy import Target, local
from llmopt.deploy.documents import json_text, yaml_text
from llmopt.deploy.litellm import REQUIREMENTS
from llmopt.deploy.local import HOST, Ports
from llmopt.deploy.nginx import KEY_LINE, LITELLM_HEALTH, asks_for_keys, nginx_conf
from llmopt.deploy.plan import Deployment, File
from llmopt.deploy.templates import render

DRAIN_S = 10  # that nginx gets for answers under way
STOP_S = 20  # that engines get before they are killed: vLLM's children take some seconds
# Program → the Debian package that has it, where the two are not called alike.
PACKAGES = {
    "nginx": "nginx-light",
    "redis-cli": "redis-tools",
    "setsid": "util-linux",
    "flock": "util-linux",
    "runuser": "util-linux",
    "systemctl": "systemd",
}
TOO_OLD_ALERTMANAGER = "one older than 0.26 does not know the url_file of alertmanager.yml; a newer one is at https://prometheus.io/download"


@dataclass(frozen=True, kw_only=True)
class FileOf:
    """A file that a program reads, written before it starts."""

    path: str
    text: str

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Files outside what is written, as the programs name them; the log of requests lies in nginx's own folder, a certificate
    and the keys of those who may ask are looked for beside its configuration.
    """

    access_log: str = "access.log"
    certificate: tuple[str, str] = ("certs/tls.crt", "certs/tls.key")
    keys: str = "keys.conf"
    webhook_file: str = "run/alert_webhook_url"


@dataclass(frozen=True, kw_only=True)
class Program:
    """``asked``: the address that answers while it lives; ``optional``: left out, with a word, where it is not installed."""

    name: str
    words: tuple[str, ...]
    port: int
    asked: str
    files: tuple[FileOf, ...] = ()
    optional: bool = False


def files(deployment: Deployment) -> Mapping[str, File]:
    """``run.sh``, and what the programs that it starts read. Raises UsageError where the ports do not suffice."""
    ports = local.ports(deployment)
    programs = list(programs_of(deployment, ports))
    return {
        "run.sh": File(text=script(deployment, ports, programs), executable=True),
        "completion.json": File(text=completion(deployment)),
        **({".env.example": File(text=wanted)} if (wanted := settings(deployment)) else {}),
        **documents(deployment, ports, Places()),
    }


def script(deployment: Deployment, ports: Ports, programs: list[Program]) -> str:
    engines = [p.name for p in programs if p.name.startswith("engine_")]
    others = [p for p in programs if p.name not in (*engines, "gateway")]
    return render(
        "run.sh",
        title=deployment.evidence.label,
        replicas=deployment.replicas,
        gateway=ports.gateway,
        ready_s=round(deployment.ready_timeout_s),
        drain_s=DRAIN_S,
        stop_s=STOP_S,
        engines=engines,
        others=[p.name for p in others],
        optional=[p for p in others if p.optional],
        programs=programs,
        nginx=next(p.words for p in programs if p.name == "gateway"),
        tools=tools(deployment),
        installs=installs(deployment, programs, tools(deployment)),
        too_old_alertmanager=TOO_OLD_ALERTMANAGER,
        through_litellm=deployment.wishes.gateway == "litellm",
        secrets=secrets(deployment),
        own_files=own_files(deployment, Places()),
        canary_shows_key=canary_shows_key(deployment),
        url=url(deployment),
    )


def tools(deployment: Deployment) -> list[str]:
    """Programs without which nothing works."""
    litellm = ["litellm"] if deployment.wishes.gateway == "litellm" else []
    redis = ["redis-server", "redis-cli"] if deployment.wishes.cache == "redis" else []
    return ["setsid", "flock", "curl", "nginx", *litellm, *redis]


def installs(deployment: Deployment, programs: Iterable[Program], needed: Iterable[str]) -> dict[str, str]:
    """Program → what brings it, of those that are needed or wished for."""
    wanted = dict.fromkeys([*needed, *(p.words[0] for p in programs if p.optional)])
    known = {
        "litellm": f"pip install {shlex.join(REQUIREMENTS)}",
        "llmopt": f"pip install llmopt=={deployment.llmopt_version}, or a wheel of it",
    }
    return {tool: known.get(tool, f"apt-get install {PACKAGES.get(tool, tool)} (Debian)") for tool in wanted}


def programs_of(deployment: Deployment, ports: Ports) -> Iterator[Program]:
    engine, wishes = deployment.engine, deployment.wishes
    for number, port in enumerate(ports.engines):
        launch = local.replica(deployment, number, port)
        yield Program(
            name=f"engine_{number + 1}",
            words=(*local.env_words(launch.environment), *launch.argv),
            port=port,
            asked=f"http://{HOST}:{port}{engine.health_path}",
            files=tuple(FileOf(path=path, text=text) for path, text in launch.files.items()),
        )
    if wishes.cache == "redis":
        # An answer that was kept is no data: nothing is written to disk, and the oldest goes first.
        kept = ("--save", "", "--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")
        words = ("redis-server", "--bind", HOST, "--port", str(ports.redis), *kept)
        yield Program(name="redis", words=words, port=ports.redis, asked=f"redis://{HOST}:{ports.redis}")
    if wishes.gateway == "litellm":
        through = ("litellm", "--config", "litellm.yaml", "--host", HOST, "--port", str(ports.litellm))
        alive = f"http://{HOST}:{ports.litellm}{LITELLM_HEALTH}"
        yield Program(name="litellm", words=through, port=ports.litellm, asked=alive)
    yield Program(
        name="gateway",
        # What -c names is looked for from -p on.
        words=("nginx", "-e", "stderr", "-p", "run/nginx", "-c", "../../nginx.conf"),
        port=ports.gateway,
        # The other port may want TLS, or a domain's name.
        asked=f"http://{HOST}:{ports.status}/status",
    )
    if wishes.monitoring:
        yield from monitoring(deployment, ports)


def monitoring(deployment: Deployment, ports: Ports) -> Iterator[Program]:
    """What watches; the stack serves without it, so a program that is not here is left out by name."""
    yield Program(
        name="canary",
        # A certificate is of the domain, which must lead here then; all else is asked where it is.
        words=(
            *("llmopt", "watch", ".", "--port", str(ports.canary)),
            *("--url", url(deployment) if deployment.wishes.tls else f"http://{HOST}:{ports.gateway}/v1"),
        ),
        port=ports.canary,
        asked=f"http://{HOST}:{ports.canary}/metrics",
        optional=True,
    )
    yield Program(
        name="alertmanager",
        words=(
            *("prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=run/alertmanager"),
            *(f"--web.listen-address={HOST}:{ports.alertmanager}", "--cluster.listen-address="),
        ),
        port=ports.alertmanager,
        asked=f"http://{HOST}:{ports.alertmanager}/-/ready",
        optional=True,
    )
    yield Program(
        name="prometheus",
        words=(
            *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=run/prometheus"),
            *("--storage.tsdb.retention.time=15d", f"--web.listen-address={HOST}:{ports.prometheus}"),
        ),
        port=ports.prometheus,
        asked=f"http://{HOST}:{ports.prometheus}/-/ready",
        optional=True,
    )


def documents(deployment: Deployment, ports: Ports, places: Places) -> dict[str, File]:
    """The configuration of the programs beside the engine, with the addresses that they have here."""
    wishes = deployment.wishes
    through = wishes.gateway == "litellm"
    upstreams = (f"{HOST}:{ports.litellm}",) if through else ports.addresses
    made = {
        "nginx.conf": File(
            text=nginx_conf(
                deployment,
                upstreams=upstreams,
                listen=f"{address(deployment)}:{ports.gateway}",
                status=f"{HOST}:{ports.status}",
                access_log=places.access_log,
                certificate=places.certificate,
                keys=places.keys if asks_for_keys(deployment) else None,
            )
        )
    }
    if through:
        from llmopt.deploy.litellm import litellm_config

        backends = [f"http://{place}/v1" for place in ports.addresses]
        redis = f"{HOST}:{ports.redis}" if wishes.cache == "redis" else None
        made["litellm.yaml"] = File(text=yaml_text(litellm_config(deployment, backends=backends, redis=redis)))
    if wishes.monitoring:
        made |= monitoring_documents(deployment, ports, places)
    return made


def monitoring_documents(deployment: Deployment, ports: Ports, places: Places) -> dict[str, File]:
    from llmopt.deploy.alertmanager import alertmanager_config
    from llmopt.deploy.grafana import dashboard
    from llmopt.deploy.prometheus import prometheus_config
    from llmopt.deploy.rules import rules

    targets: dict[str, tuple[str, ...]] = {"canary": (f"{HOST}:{ports.canary}",)}
    if deployment.engine.metrics_path is not None:
        targets["engine"] = ports.addresses
    if deployment.engine.gpus:
        targets["gpu"] = (local.GPU_EXPORTER,)
    alertmanager = f"{HOST}:{ports.alertmanager}"
    config = prometheus_config(deployment, targets=targets, rules="rules.yml", alertmanager=alertmanager)
    return {
        "prometheus.yml": File(text=yaml_text(config)),
        "rules.yml": File(text=yaml_text(rules(deployment))),
        "alertmanager.yml": File(text=yaml_text(alertmanager_config(deployment, webhook_file=places.webhook_file))),
        "grafana/llmopt.json": File(text=json_text(dashboard(deployment))),
    }


def completion(deployment: Deployment) -> str:
    """What is asked of an engine to see that it is ready."""
    return json_text({"model": deployment.engine.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})


def own_files(deployment: Deployment, places: Places) -> dict[str, str]:
    """What the gateway reads and only who starts it can give: path → what it is."""
    wanted: dict[str, str] = {}
    if asks_for_keys(deployment):
        wanted[places.keys] = f"a line {KEY_LINE} for each key that may ask"
    if deployment.wishes.tls:
        wanted |= dict(
            zip(places.certificate, ("the certificate with its chain", "the key of the certificate"), strict=True)
        )
    return wanted


def secret_places(deployment: Deployment, settings: str, places: Places) -> str:
    """Where they and the settings belong, for the README."""
    own = own_files(deployment, places)
    return ", ".join(f"`{path}`" for path in (settings, *own)) if own else settings


def secrets(deployment: Deployment) -> list[str]:
    """Variables without which nothing may start: LiteLLM without its key answers everybody."""
    return ["LITELLM_MASTER_KEY"] if deployment.wishes.gateway == "litellm" else []


def canary_shows_key(deployment: Deployment) -> bool:
    return deployment.wishes.monitoring and (deployment.wishes.gateway == "litellm" or asks_for_keys(deployment))


def settings(deployment: Deployment, place: str = ".env, which run.sh reads,", places: Places | None = None) -> str:
    """What is a secret, or of this place alone, with values left empty; empty where there is nothing of the kind.

    ``places``: where the services read files of their own, among them that of an address that alerts are posted to.
    """
    webhook = None if places is None else places.webhook_file
    own = own_files(deployment, places or Places())
    lines = [f"# A file of its own: {path}, {what}." for path, what in own.items()]
    if deployment.wishes.gateway == "litellm":
        lines += ["# The key that clients of the gateway show, at least 20 random characters.", "LITELLM_MASTER_KEY="]
    if canary_shows_key(deployment):
        which = "one of the keys that keys.conf lets in" if asks_for_keys(deployment) else "the same key"
        lines += [f"# For the canary: {which}.", "LLMOPT_API_KEY="]
    if deployment.wishes.monitoring and webhook is None:
        lines += ["# Where alerts are posted to; without it they are seen in Prometheus alone.", "ALERT_WEBHOOK_URL="]
    elif deployment.wishes.monitoring:
        lines += [
            f"# Where alerts are posted to is the one line of {webhook}; without it they are seen in Prometheus alone."
        ]
    head = f"# Copy to {place} and fill in; llmopt neither writes nor reads it."
    return "".join(f"{line}\n" for line in (head, *lines)) if lines else ""


def address(deployment: Deployment) -> str:
    """Where the gateway listens: nobody but this machine, until a domain says that others are to come."""
    return "0.0.0.0" if deployment.wishes.domain else HOST


def url(deployment: Deployment) -> str:
    wishes = deployment.wishes
    return f"{'https' if wishes.tls else 'http'}://{wishes.domain or HOST}:{wishes.port}/v1"


TARGET = Target(
    name="shell",
    title="processes of one machine, by run.sh",
    refusal=local.refusal,
    files=files,
    start=lambda deployment: ("./run.sh",),
    url=url,
    doubts=local.doubts,
    secrets=lambda deployment: secret_places(deployment, ".env", Places()),
    limits_memory=False,
)
