"""``run.sh`` for real, with nginx before the scripted server, and stand-ins for the programs that want much of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmopt.core.process import KeptProcess
from llmopt.deploy import target
from llmopt.deploy.plan import Deployment, Launch
from llmopt.serve.scripted import SERVER
from tests.programs import answers, until
from tests.unit.deploy.make import deployment

PROGRAMS = ("nginx", "curl", "setsid", "flock")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"one of {', '.join(PROGRAMS)} is not here"),
]
KEY = 'sk-only \'of "this" $test'
# Like LiteLLM it answers completions to those alone who have the key.
LITELLM = f"""#!{sys.executable}
import http.server, os, sys
class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.answer(200)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers.get("Authorization") == "Bearer " + os.environ["LITELLM_MASTER_KEY"]
        self.answer(200 if known else 401)
    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Asked).serve_forever()
"""

# Writes down whether the gateway answered when the canary was started.
CANARY = """#!/bin/sh
for url; do :; done
curl -sf --noproxy '*' "${url%/v1}/readyz" >/dev/null; echo $? >>asked
exec sleep 600
"""


def free_ports(count: int = 110) -> int:
    """The first of so many in a row that nobody listens on."""
    for first in range(20000, 32000, count):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no ports are free")


def native(host: str, port: int) -> Launch:
    return Launch(argv=(sys.executable, str(SERVER), "--host", host, "--port", str(port)))


def of(**wishes: Any) -> Deployment:
    return deployment(
        engine={"native": native, "model": "scripted", "gpus": 0, "artifact": "/"},
        capacity={"replicas": 1},
        wishes={"target": "shell", "monitoring": False, "port": free_ports(), **wishes},
    )


def write(made: Deployment, folder: Path, programs: Mapping[str, str] | None = None) -> None:
    """The deployment, and programs that are found before those of the machine: name → script."""
    for path, file in target("shell").files(made).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(file.text)
        (folder / path).chmod(0o755)
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in (programs or {}).items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **variables}


@contextlib.contextmanager
def started(folder: Path, **variables: str) -> Iterator[None]:
    """Once it says that it is ready; stopped by a signal."""
    log = folder / "said.log"
    with KeptProcess([str(folder / "run.sh")], log=log, environment=environment(folder, **variables)) as process:
        until(lambda: "ready: " in log.read_text(), patience_s=60, process=process)
        yield


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "run.sh", *words],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_litellm_is_ready_when_it_completes_for_the_key(tmp_path: Path) -> None:
    made = of(gateway="litellm")
    write(made, tmp_path, {"litellm": LITELLM})
    with started(tmp_path, LITELLM_MASTER_KEY=KEY):
        assert "litellm answers on port" in (tmp_path / "said.log").read_text()
        assert answers(f"http://127.0.0.1:{made.wishes.port}/readyz")


def test_status_is_of_what_was_started_whatever_was_written_since(tmp_path: Path) -> None:
    old = of()
    write(old, tmp_path)
    with started(tmp_path):
        write(of(monitoring=True, port=old.wishes.port + 200), tmp_path)
        said = run(tmp_path, "status")
    port = old.wishes.port
    assert said.stdout == f"engine_1: answers on port {port + 1}\ngateway: answers on port {port}\n"


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not here")
def test_a_redis_that_does_not_answer_is_told(tmp_path: Path) -> None:
    write(of(gateway="litellm", cache="redis"), tmp_path, {"litellm": LITELLM})
    with started(tmp_path, LITELLM_MASTER_KEY=KEY):
        before = run(tmp_path, "status")
        os.kill(int((tmp_path / "run" / "redis.pid").read_text()), signal.SIGSTOP)
        after = run(tmp_path, "status")
        os.kill(int((tmp_path / "run" / "redis.pid").read_text()), signal.SIGCONT)
    assert "redis: answers" in before.stdout
    assert (after.returncode, "redis: runs, and does not answer" in after.stdout) == (1, True)


def test_a_certificate_that_is_missing_is_said_before_the_engines_load(tmp_path: Path) -> None:
    write(of(tls=True), tmp_path)
    done = run(tmp_path)
    assert (done.returncode, "certs/tls.crt is not there" in done.stderr) == (1, True), done.stderr
    assert not list((tmp_path / "logs").iterdir())


def test_a_certificate_that_is_none_is_said_before_the_engines_load(tmp_path: Path) -> None:
    write(of(tls=True), tmp_path)
    (tmp_path / "certs").mkdir()
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "certs" / name).write_text("none\n")
    done = run(tmp_path)
    assert (done.returncode, "nginx does not take nginx.conf" in done.stderr) == (1, True), done.stderr
    assert not list((tmp_path / "logs").iterdir())


def test_the_canary_starts_when_the_gateway_answers(tmp_path: Path) -> None:
    write(of(monitoring=True, gateway="litellm"), tmp_path, {"llmopt": CANARY, "litellm": LITELLM})
    with started(tmp_path, LITELLM_MASTER_KEY=KEY, LLMOPT_API_KEY=KEY):
        assert until((tmp_path / "asked").exists)
        assert until((tmp_path / "asked").read_text) == "0\n"


def test_a_canary_without_a_key_that_the_gateway_asks_for_is_left_out_by_name(tmp_path: Path) -> None:
    """Each of its probes would be refused, and somebody called."""
    write(of(monitoring=True, gateway="litellm"), tmp_path, {"llmopt": CANARY, "litellm": LITELLM})
    with started(tmp_path, LITELLM_MASTER_KEY=KEY, LLMOPT_API_KEY=""):
        assert "canary is left out: LLMOPT_API_KEY is empty" in (tmp_path / "said.log").read_text()
        assert "canary" not in run(tmp_path, "status").stdout


def test_an_address_that_alerts_went_to_is_forgotten_once_it_is_taken_out(tmp_path: Path) -> None:
    write(of(), tmp_path)
    place = tmp_path / "run" / "alert_webhook_url"
    with started(tmp_path, ALERT_WEBHOOK_URL="http://one.example.org/secret"):
        assert place.read_text() == "http://one.example.org/secret"
        assert place.stat().st_mode & 0o077 == 0
    with started(tmp_path, ALERT_WEBHOOK_URL=""):
        assert until(lambda: not place.exists(), patience_s=10)
