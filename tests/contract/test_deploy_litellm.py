"""LiteLLM's proxy and Redis, by the configuration that we write, before the scripted server.

LiteLLM wants an environment of its own (pip install "litellm[proxy]" prisma): it is looked for on the PATH, or where
``LLMOPT_LITELLM`` says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmopt.core.process import KeptProcess
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.litellm import litellm_config
from llmopt.serve import scripted
from llmopt.serve.process import HOST, free_port
from tests.programs import Answer, answers, ask, gateway, require, until
from tests.unit.deploy.make import deployment

PROGRAM = os.environ.get("LLMOPT_LITELLM") or shutil.which("litellm")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(PROGRAM is None, reason='litellm is not here (pip install "litellm[proxy]" prisma)'),
]
KEY = "sk-only-of-this-test"
STARTS_WITHIN_S = 120.0


@dataclass(frozen=True)
class Stack:
    """nginx before LiteLLM before two replicas, of which nobody listens at the first one; and the cache."""

    url: str
    redis: int

    def completion(self, *, key: str | None = KEY, **body: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return ask(f"{self.url}/v1/completions", {"model": "scripted", "max_tokens": 4, **body}, headers=headers)

    def keys(self) -> list[str]:
        words = ("redis-cli", "-p", str(self.redis), "--raw", "keys", "tiny:*")
        return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.split()

    def kept(self, answer: Answer) -> bool:
        return answer.headers.get("x-litellm-cache-key") in self.keys()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require("redis-server")
    require("nginx")
    folder, port, redis = tmp_path_factory.mktemp("litellm"), free_port(None), free_port(None)
    made = deployment(
        engine={"model": "scripted"},
        evidence={"concurrency": 4},
        wishes={"gateway": "litellm", "cache": "redis", "rate_limit_rps": 1000.0},
    )
    with contextlib.ExitStack() as entered:
        server = entered.enter_context(scripted.running("--ttft-ms", "20", "--tpot-ms", "50"))
        backends = (f"http://{HOST}:{free_port(None)}/v1", server)
        (folder / "config.yaml").write_text(yaml_text(litellm_config(made, backends=backends, redis=f"{HOST}:{redis}")))
        words = ("redis-server", "--bind", HOST, "--port", str(redis), "--save", "", "--appendonly", "no")
        entered.enter_context(KeptProcess(words, log=folder / "redis.log"))
        entered.enter_context(proxy(folder, port))
        yield Stack(entered.enter_context(gateway(folder, made, [f"{HOST}:{port}"])), redis)


@contextlib.contextmanager
def proxy(folder: Path, port: int) -> Iterator[None]:
    words = (str(PROGRAM), "--config", str(folder / "config.yaml"), "--host", HOST, "--port", str(port))
    own = {**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    with KeptProcess(words, log=folder / "litellm.log", environment=own) as process:
        alive = f"http://{HOST}:{port}/health/liveliness"
        until(lambda: answers(alive), patience_s=STARTS_WITHIN_S, process=process)
        yield


def test_more_at_once_than_the_replicas_can_take_is_refused(stack: Stack) -> None:
    """Twice the measured concurrency for each replica, of which one is away here."""
    with ThreadPoolExecutor(40) as crowd:
        seen = list(crowd.map(lambda n: stack.completion(prompt=f"crowd {n}"), range(40)))
    assert {a.status for a in seen} == {200, 429}
    assert any(b"max_parallel_requests" in a.body for a in seen)


def test_a_replica_that_is_away_costs_nobody_an_answer(stack: Stack) -> None:
    assert {stack.completion(prompt=f"away {n}").status for n in range(8)} == {200}


def test_chunks_of_a_stream_arrive_one_by_one(stack: Stack) -> None:
    answer = stack.completion(prompt="a stream", max_tokens=8, stream=True)
    assert len(answer.arrived_s) >= 8
    assert answer.arrived_s[-1] > 0.3


def test_the_second_answer_comes_out_of_the_cache(stack: Stack) -> None:
    first, second = (stack.completion(prompt="the same") for _ in range(2))
    assert stack.kept(second)
    assert second.body == first.body


def test_who_wants_no_kept_answer_gets_a_new_one(stack: Stack) -> None:
    stack.completion(prompt="anew")
    assert "x-litellm-cache-key" not in stack.completion(prompt="anew", cache={"no-cache": True}).headers


@pytest.mark.parametrize("key", [None, "sk-another"])
def test_without_the_key_nobody_is_answered(stack: Stack, key: str | None) -> None:
    assert stack.completion(prompt="x", key=key).status in (400, 401)


def test_the_gateway_is_ready_when_the_proxy_is(stack: Stack) -> None:
    assert ask(f"{stack.url}/readyz", {}).status != 502


def test_pages_of_the_proxy_are_not_reached_from_outside(stack: Stack) -> None:
    assert {ask(f"{urlsplit(stack.url)._replace(path=p).geturl()}", {}).status for p in ("/ui", "/key/generate")} == {
        404
    }
