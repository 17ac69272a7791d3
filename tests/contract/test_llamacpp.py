"""llama.cpp's two servers, the compiled one and the one in the wheel: the same words have the same effect."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmopt import serve
from llmopt.core import environments
from llmopt.core.domain import Artifact, ServeOptions
from llmopt.core.errors import ServerError
from llmopt.serve import llamacpp
from llmopt.serve.process import DIRECT, RunningServer, serving
from tests.contract.conftest import Workshop

pytestmark = pytest.mark.engine
PROMPT = "Once upon a time there was a house by the river, and in the house there lived a cat. " * 3


@pytest.fixture(params=["compiled", "wheel"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "wheel":
        monkeypatch.setattr(llamacpp, "own_server", lambda: None)
    elif llamacpp.own_server() is None:
        pytest.skip("llama-server is not here: llmopt env create llamacpp --build")
    return str(request.param)


@pytest.fixture
def artifact(workshop: Workshop) -> Artifact:
    return workshop.artifact("gguf-q4_k_m")


def started(artifact: Artifact, folder: Path, **options: Any) -> Any:
    chosen = ServeOptions(backend="llamacpp", max_num_seqs=2, max_model_len=512, **options)
    return serving(serve.backend("llamacpp"), artifact, chosen, environments.current(), log=folder / "log")


def ask(server: RunningServer, tokens: int = 24) -> dict[str, Any]:
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.command.base_url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with DIRECT.open(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def counted(server: RunningServer, name: str) -> float:
    with DIRECT.open(server.command.base_url.removesuffix("/v1") + "/metrics", timeout=10) as response:
        lines: Iterator[str] = iter(response.read().decode().splitlines())
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


def test_its_log_tells_where_memory_goes(road: str, artifact: Artifact, tmp_path: Path) -> None:
    told = ("-lv", "4")
    with started(artifact, tmp_path, kv_cache_dtype="q8_0", max_num_batched_tokens=128, extra_args=told) as server:
        facts = serve.backend("llamacpp").facts(server.process.log_tail(2000))
        for name in serve.backend("llamacpp").metrics.values():
            counted(server, name)
    assert facts.weights_bytes is not None
    assert facts.weights_bytes >= artifact.size_bytes * 0.9
    assert facts.kv_cache_bytes == pytest.approx(2 * 512 * 4096 * 34 / 64, rel=0.01)  # 4,096 bytes a token in 16 bits
    assert facts.activation_bytes is not None
    assert (facts.kv_capacity_tokens, facts.max_concurrency) == (1024, 2.0)


def test_unasked_it_tells_what_its_slots_hold(road: str, artifact: Artifact, tmp_path: Path) -> None:
    with started(artifact, tmp_path) as server:
        facts = serve.backend("llamacpp").facts(server.process.log_tail(2000))
    assert (facts.kv_capacity_tokens, facts.max_concurrency) == (1024, 2.0)


def test_a_draft_model_drafts(road: str, artifact: Artifact, tmp_path: Path) -> None:
    with started(artifact, tmp_path, speculative_model=artifact.path, num_speculative_tokens=3) as server:
        ask(server)
        drafted = counted(server, "llamacpp:spec_decode_num_draft_tokens_total")
        accepted = counted(server, "llamacpp:spec_decode_num_accepted_tokens_total")
    assert drafted > 0
    assert accepted > drafted / 2  # its own draft


@pytest.mark.parametrize("on", [True, False])
def test_prompts_are_kept_or_not(road: str, on: bool, artifact: Artifact, tmp_path: Path) -> None:
    with started(artifact, tmp_path, enable_prefix_caching=on) as server:
        counts = [ask(server, 2)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert counts[0] == 0
    assert (counts[1] > 0) == on


def test_a_word_that_it_does_not_know_is_named(road: str, artifact: Artifact, tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"does not know.*--no-such-word"),
        started(artifact, tmp_path, extra_args=("--no-such-word",)),
    ):
        pass


def test_the_wheel_refuses_what_only_the_compiled_one_has() -> None:
    argv = [sys.executable, str(llamacpp.SERVER), "-m", "x", "--port", "1", "--grammar", "x"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 2
    assert "unrecognized arguments: --grammar" in told.stderr
