"""vLLM for real, on whatever is here: what it says of itself, a quantized artifact, and that nothing of it is left."""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt import demo, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, Traffic, measure
from llmopt.core.domain import ServeOptions, Workload
from llmopt.serve.process import DIRECT, RunningServer, serving
from tests.contract.conftest import Workshop, environment_of
from tests.processes import gone_within

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
OPTIONS = ServeOptions(
    backend="vllm", max_num_seqs=4, max_model_len=512, enforce_eager=True, enable_prefix_caching=True, block_size=32
)
# All others that a machine without a GPU has a use for, taken by the engine itself.
MORE = replace(
    OPTIONS, enable_prefix_caching=False, enable_chunked_prefill=False, max_num_batched_tokens=2048, kv_cache_dtype="fp8",
    gpu_memory_utilization=0.5, speculative_model="ngram", num_speculative_tokens=3, limit_mm_per_prompt="image=1",
)  # fmt: skip
WORKLOAD = Workload(input_tokens=48, output_tokens=16, concurrency=2, requests=16, warmup_requests=2)


def measured(server: RunningServer) -> RunResult:
    target = Target(
        base_url=server.command.base_url,
        model=server.command.model,
        pid=server.pid,
        load_s=server.load_s,
        usage_per_chunk=True,
    )
    traffic = Traffic(salt="vllm", source=demo.CALIBRATION_TEXT.read_text(), tokenizer=load_tokenizer(demo.MODEL))
    return measure(target, WORKLOAD, traffic)


@pytest.fixture(scope="module")
def server(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """bf16, with the prefix cache on."""
    backend = serve.backend("vllm")
    log = tmp_path_factory.mktemp("logs") / "vllm.log"
    with serving(backend, workshop.artifact("bf16"), OPTIONS, environment_of(backend), log=log) as running:
        yield running


def test_its_log_tells_the_kv_cache(server: RunningServer) -> None:
    facts = serve.backend("vllm").facts(server.process.log_tail(10_000))
    assert facts.kv_cache_bytes is not None
    assert facts.kv_cache_bytes >= 1 << 30
    assert facts.kv_capacity_tokens is not None
    assert facts.max_concurrency == pytest.approx(facts.kv_capacity_tokens / 512, rel=0.01)


def test_a_whole_answer_of_16_bit_weights_is_measured(server: RunningServer) -> None:
    run = measured(server)
    assert {(t.error, t.output_tokens) for t in run.traces} == {(None, 16)}
    assert run.metrics["ttft_s"]["p50"] > 0


def test_it_counts_what_our_names_ask_for(server: RunningServer) -> None:
    with DIRECT.open(server.command.base_url.removesuffix("/v1") + "/metrics", timeout=10) as response:
        page = response.read().decode()
    for name in serve.backend("vllm").metrics.values():
        assert f"\n{name}" in page


def test_every_chunk_tells_the_tokens_so_far(server: RunningServer) -> None:
    body = {"model": server.command.model, "prompt": "Hello", "max_tokens": 5, "stream": True, "temperature": 0}
    body |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.command.base_url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with DIRECT.open(request, timeout=60) as response:
        chunks = [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[-1] == 5
    assert counts == sorted(counts)


def test_8_bit_weights_are_served_and_nothing_is_left(workshop: Workshop, tmp_path: Path) -> None:
    backend, artifact = serve.backend("vllm"), workshop.artifact("w8a8-int8")
    before = leftovers()
    with serving(backend, artifact, MORE, environment_of(backend), log=tmp_path / "log") as running:
        run = measured(running)
        ended = time.monotonic()
    assert time.monotonic() - ended < 10
    assert {(t.error, t.output_tokens) for t in run.traces} == {(None, 16)}
    assert gone_within(artifact.path, 1)
    assert leftovers() <= before


def leftovers() -> set[str]:
    """Shared memory, and sockets among the temporary files."""
    sockets = {str(path) for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket()}
    return sockets | {str(path) for path in Path("/dev/shm").glob("*")}
