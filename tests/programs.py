"""Programs of Debian's that a deployment consists of, started from our files for the time of a test, on the loopback address."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from llmopt.core.process import KeptProcess
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.nginx import nginx_conf
from llmopt.deploy.plan import Deployment
from llmopt.deploy.prometheus import prometheus_config
from llmopt.deploy.rules import rules
from llmopt.serve.process import DIRECT, HOST, free_port

PATIENCE_S = 30.0


def require(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not here")


def until(there: Callable[[], Any], *, patience_s: float = PATIENCE_S, process: KeptProcess | None = None) -> Any:
    """What ``there`` gives once it is true."""
    deadline = time.monotonic() + patience_s
    while not (found := there()):
        told = "" if process is None else "\n".join(process.log_tail(20))
        if time.monotonic() > deadline or (process is not None and not process.running):
            raise AssertionError(f"waited for {there} in vain: {told}")
        time.sleep(0.02)
    return found


def answers(url: str) -> bool:
    """Whoever has a certificate is not asked whose it is."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=ssl._create_unverified_context()):
            return True
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def gateway(
    folder: Path,
    deployment: Deployment,
    upstreams: Sequence[str],
    *,
    keys: str | None = None,
    edit: Callable[[str], str] = str,
) -> Iterator[str]:
    """Its address without ``/v1``; ``edit`` changes what only a patient test could wait for."""
    require("nginx")
    port = free_port(None)
    text = nginx_conf(
        deployment, upstreams=upstreams, listen=f"{HOST}:{port}", status=None, access_log="access.log", keys=keys
    )
    conf = folder / "nginx.conf"
    conf.write_text(edit(text))
    words = ("nginx", "-e", "stderr", "-p", str(folder), "-c", str(conf))
    with KeptProcess(words, log=folder / "nginx.log") as process:
        url = f"{'https' if deployment.wishes.tls else 'http'}://{HOST}:{port}"
        until(lambda: answers(f"{url}/healthz"), process=process)
        yield url


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        with DIRECT.open(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return found

    def firing(self) -> set[str]:
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == "firing"}


@contextlib.contextmanager
def prometheus(folder: Path, deployment: Deployment, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    require("prometheus")
    (folder / "rules.yml").write_text(yaml_text(rules(deployment)))
    config = prometheus_config(deployment, targets=targets, rules="rules.yml", alertmanager=None)
    (folder / "prometheus.yml").write_text(yaml_text(config))
    port = free_port(None)
    words = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with KeptProcess(words, log=folder / "prometheus.log") as process:
        url = f"http://{HOST}:{port}"
        until(lambda: answers(f"{url}/-/ready"), process=process)
        yield Prometheus(url)


@dataclass(frozen=True)
class Answer:
    """``arrived_s``: when each read of the body came, from the first on."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived_s: tuple[float, ...] = ()


def ask(url: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Answer:
    """POST of a completion; every read is stamped when it came."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        words = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", parts.path, json.dumps(body), words)
        response = connection.getresponse()
        read, stamps = [], []
        while piece := response.read1(65536):
            read.append(piece)
            stamps.append(time.monotonic())
        return Answer(response.status, b"".join(read), dict(response.headers), tuple(s - stamps[0] for s in stamps))
    finally:
        connection.close()
