"""What holds for every engine of the table: it starts, answers as asked, is measured, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt import demo, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, Traffic, measure
from llmopt.core import environments
from llmopt.core.domain import ServeOptions, Workload
from llmopt.core.errors import ServerError, UsageError
from llmopt.quantize import quantization
from llmopt.serve.process import RunningServer, serving
from llmopt.serve.recognise import recognise
from tests.contract.conftest import STARTED, Workshop
from tests.processes import gone_within, mentioning

pytestmark = pytest.mark.engine
SHORT = Workload(input_tokens=48, output_tokens=16, concurrency=4, requests=64, warmup_requests=4)
# vLLM (0.32): its HTTP process sends what has come together until it gets to run.  On a busy machine with two cores that
# was all of 16 tokens, whose rate nobody can know; 64 take a quarter of a second.
WORKLOADS = {"vllm": replace(SHORT, output_tokens=64)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "started" in metafunc.fixturenames:
        metafunc.parametrize("started", list(STARTED), indirect=True, scope="package")


@pytest.fixture(scope="module")
def workload(started: RunningServer) -> Workload:
    return WORKLOADS.get(started.backend, SHORT)


@pytest.fixture(scope="module")
def run(started: RunningServer, workload: Workload) -> RunResult:
    target = Target(
        base_url=started.command.base_url,
        model=started.command.model,
        pid=started.pid,
        load_s=started.load_s,
        usage_per_chunk=started.command.usage_per_chunk,
    )
    tokenizer = load_tokenizer(demo.MODEL)
    traffic = Traffic(salt="contract", source=demo.CALIBRATION_TEXT.read_text(), tokenizer=tokenizer)
    return measure(target, workload, traffic)


def test_every_request_succeeds(run: RunResult, workload: Workload) -> None:
    assert [t.error for t in run.traces] == [None] * workload.requests


def test_output_has_the_length_that_was_asked(run: RunResult, workload: Workload) -> None:
    assert {t.output_tokens for t in run.traces} == {workload.output_tokens}


def test_server_counts_the_prompt_as_we_do(run: RunResult, workload: Workload) -> None:
    assert {t.prompt_tokens for t in run.traces} == {workload.input_tokens}


def test_tokens_are_streamed_one_by_one(run: RunResult, started: RunningServer, workload: Workload) -> None:
    """But for vLLM, see above; what it sends together it counts."""
    if started.backend == "vllm":
        assert {sum(t.chunk_tokens) for t in run.traces} == {workload.output_tokens}
        return
    chunks = sorted(len(t.chunks_ns) for t in run.traces)
    assert chunks[len(chunks) // 2] >= workload.output_tokens - 2


def test_no_headline_metric_is_unknown(run: RunResult) -> None:
    m = run.metrics
    assert min(m["ttft_s"]["p50"], m["ttft_s"]["p95"], m["tps"]["p50"]) > 0
    assert min(m["output_tps_whole"], m["requests_per_s_whole"]) > 0
    if (
        m["output_tps"] is None
    ):  # a busy machine may never get steady in a run of a second, which the run then says itself
        assert {"never_steady", "no_steady_window"} & {doubt.code for doubt in run.verdict.reasons}
    else:
        assert min(m["output_tps"], m["requests_per_s"]) > 0
    assert m["peak_rss_bytes"] > 5 << 20
    assert m["load_s"] > 0


def test_timeline_is_in_order(run: RunResult) -> None:
    for t in run.traces:
        stamps = [t.planned_ns, t.sent_ns, t.first_byte_ns, t.first_token_ns, t.last_token_ns, t.closed_ns]
        known = [s for s in stamps if s is not None]
        assert len(known) == 6
        assert known == sorted(known)


def test_it_is_recognised_behind_its_address(started: RunningServer) -> None:
    found = recognise(started.command.base_url)
    assert (found.engine, bool(found.evidence)) == (started.backend, True)


@pytest.mark.parametrize("name", list(serve.BACKENDS))
def test_refuses_what_it_does_not_load_and_names_an_engine_that_does(name: str) -> None:
    other = "nf4-dq" if name == "llamacpp" else "gguf-q8_0"
    if serve.backend(name).refusal(quantization(other)) is None:
        pytest.skip("loads everything")
    with pytest.raises(UsageError, match="does not load") as caught:
        serve.require_loadable(name, quantization(other))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("--backend ")


@pytest.mark.parametrize("name", ["hf", "llamacpp"])
def test_broken_weights_are_one_clear_error_and_no_process(name: str, workshop: Workshop, tmp_path: Path) -> None:
    good = workshop.artifact(STARTED[name])
    for file in Path(good.path).iterdir():
        data = file.read_bytes()
        weights = file.suffix in (".safetensors", ".gguf")
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if weights else data)
    backend = serve.backend(name)
    broken = replace(good, path=str(tmp_path))
    options = ServeOptions(backend=name)
    with pytest.raises(ServerError, match="died while loading") as caught:  # noqa: SIM117
        with serving(backend, broken, options, environments.find(backend.needs), log=tmp_path / "log"):
            pass
    assert caught.value.hint is not None
    assert gone_within(str(tmp_path), 5)


def test_a_port_in_use_is_said_before_anything_starts(workshop: Workshop, tmp_path: Path) -> None:
    backend = serve.backend("scripted")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use"):  # noqa: SIM117
            with serving(
                backend, workshop.artifact("bf16"), ServeOptions(backend="scripted"), environments.current(),
                log=tmp_path / "log", port=port,
            ):  # fmt: skip
                pass


@pytest.mark.parametrize(("fault", "word"), [("die", "it was told to die"), ("hang", "was not ready after")])
def test_a_server_that_dies_or_hangs_while_loading(fault: str, word: str, workshop: Workshop, tmp_path: Path) -> None:
    options = ServeOptions(backend="scripted", extra_args=("--fault", fault, "--prompt-tokens", str(os.getpid())))
    with pytest.raises(ServerError, match=word):  # noqa: SIM117
        with serving(
            serve.backend("scripted"), workshop.artifact("bf16"), options, environments.current(),
            log=tmp_path / "log", ready_timeout_s=3,
        ):  # fmt: skip
            pass
    assert gone_within(f"--fault {fault} --prompt-tokens {os.getpid()}", 5)


@pytest.mark.parametrize("name", ["hf", "llamacpp"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_us(name: str, number: signal.Signals, workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.artifact(STARTED[name])
    argv = [sys.executable, "-m", "llmopt", "bench", artifact.path, "--backend", name, "--requests", "100000"]
    log = (tmp_path / "err").open("w")
    process = subprocess.Popen(
        [*argv, "--results", str(tmp_path / "results")],
        stderr=log,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    try:
        deadline = time.monotonic() + 90
        while "measuring" not in (tmp_path / "err").read_text():
            assert process.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(mentioning(artifact.path)) >= 3  # us, the keeper, the engine
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else -number)
    finally:
        process.kill()
        log.close()
    assert gone_within(artifact.path, 15)
    if number == signal.SIGINT:
        assert "error: interrupted" in (tmp_path / "err").read_text()
        assert "Traceback" not in (tmp_path / "err").read_text()
