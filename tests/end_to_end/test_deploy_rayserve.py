"""The application of the rayserve target under a real Ray, over the scripted engine: it needs no model, and has a known speed.

Ray lies in no environment that llmopt makes: ``LLMOPT_RAY_PYTHON`` names an interpreter that has ``requirements.txt``.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmopt.core import environments
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import MissingEnvironment
from llmopt.core.process import KeptProcess
from llmopt.deploy import rayserve
from llmopt.deploy.plan import Deployment, Launch
from llmopt.serve.process import free_port
from llmopt.serve.scripted import SERVER
from tests.processes import gone_within, mentioning
from tests.unit.deploy.make import deployment

pytestmark = pytest.mark.engine
RAY = Needs(modules=("ray", "aiohttp", "starlette"), programs=("serve",), extra="ray")
STARTED_S = 120
TPOT_MS, TOKENS = 40, 12
NAME = "a b'c\"$(id)"  # of the folder: what lies in it is found all the same


@pytest.fixture(scope="module")
def ray() -> Environment:
    try:
        return environments.find(RAY, os.environ.get("LLMOPT_RAY_PYTHON"))
    except MissingEnvironment as error:
        pytest.skip(error.message)


def scripted(host: str, port: int) -> Launch:
    script = ("--ttft-ms", "5", "--tpot-ms", str(TPOT_MS))
    return Launch(argv=(sys.executable, str(SERVER), "--host", host, "--port", str(port), *script))


def written(folder: Path, made: Deployment) -> Path:
    folder.mkdir()
    for name, file in rayserve.files(made).items():
        (folder / name).write_text(file.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def port(ray: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Two replicas that answer; stopped with everything that Ray started."""
    port = free_port(None)
    made = deployment(
        engine={"native": scripted, "gpus": 0, "threads": 1, "model": "scripted", "backend": "scripted"},
        evidence={"concurrency": 4, "load_s": 1.0},
        wishes={"target": "rayserve", "port": port, "autoscaler": "none"},
    )
    folder = written(tmp_path_factory.mktemp("ray") / NAME, made)
    serve = str(ray.python.with_name("serve"))
    environment = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}
    command = ["sh", "-c", 'cd "$1" && exec "$2" run serve_config.yaml', "sh", str(folder), serve]
    with KeptProcess(command, log=folder.parent / "serve.log", environment=environment, grace_s=20) as process:
        until = time.monotonic() + STARTED_S
        while not answered(port):
            waiting = process.running and time.monotonic() < until
            assert waiting, (folder.parent / "serve.log").read_text()[-3000:]
            time.sleep(0.5)
        wait_for_keepers(2)
        yield port
    assert gone_within("llmopt-engine-", 20)
    assert not mentioning(str(SERVER))


def ask(port: int, path: str = "/v1/completions", tokens: int = 2) -> tuple[int, list[float]]:
    """Status, and when each read brought something, s."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"model": "scripted", "prompt": "Hello", "max_tokens": tokens, "stream": True}
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer, stamps = connection.getresponse(), []
    while answer.read1(65536):
        stamps.append(time.monotonic())
    connection.close()
    return answer.status, stamps


def answered(port: int) -> bool:
    try:
        return ask(port)[0] == 200
    except OSError:
        return False


def keepers() -> list[psutil.Process]:
    return [p for p in mentioning("llmopt-engine-") if "keeper.py" in " ".join(p.cmdline())]


def wait_for_keepers(count: int) -> None:
    until = time.monotonic() + 60
    while len(keepers()) < count:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_tokens_arrive_one_by_one(port: int) -> None:
    status, stamps = ask(port, tokens=TOKENS)
    assert status == 200
    assert len(stamps) >= TOKENS // 2
    assert stamps[-1] - stamps[0] > (TOKENS - 2) * TPOT_MS / 1000 * 0.8


def test_only_the_engine_s_api_is_passed_on(port: int) -> None:
    assert ask(port, "/metrics")[0] == 404


def test_a_replica_whose_engine_died_is_replaced_and_draws_nothing(port: int) -> None:
    lost = keepers()[0]
    (engine,) = lost.children()
    engine.kill()
    time.sleep(1)  # nothing was in flight: Ray needs a moment to see that a replica is gone
    assert [answered(port) for _ in range(20)] == [True] * 20
    wait_for_keepers(2)
    assert not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE


def test_ray_knows_every_field(ray: Environment, tmp_path: Path) -> None:
    code = (
        "import sys, yaml; from ray.serve.schema import ServeDeploySchema as S; S(**yaml.safe_load(open(sys.argv[1])))"
    )
    file = tmp_path / "serve_config.yaml"
    for made in (deployment(), deployment(engine={"arguments": {"max_num_seqs": 4}})):
        file.write_text(rayserve.files(made)[file.name].text)
        done = subprocess.run([str(ray.python), "-c", code, str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
