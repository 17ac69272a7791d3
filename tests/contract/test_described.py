"""Engines that do not run here, each against a fake of its command line (``engines/``): it starts, is measured, is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llmopt import demo, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, Traffic, measure
from llmopt.core import environments
from llmopt.core.artifacts import open_model, unquantized
from llmopt.core.domain import Artifact, ServeOptions, Workload
from llmopt.core.errors import ServerError
from llmopt.serve import triton
from llmopt.serve.process import RunningServer, command_of, completes, prepared, serving
from llmopt.serve.recognise import recognise
from tests.contract.engines.fake_engine import PARSE_ONLY
from tests.processes import gone_within

ENGINES = Path(__file__).with_name("engines")
PROGRAMS = {
    "sglang": "sglang", "trtllm": "trtllm-serve", "tgi": "text-generation-launcher", "lmdeploy": "lmdeploy", "rayserve": "serve",
}  # fmt: skip
DESCRIBED = (*PROGRAMS, "triton")
WORKLOAD = Workload(input_tokens=16, output_tokens=8, concurrency=2, requests=8, warmup_requests=0)
# One value for every option that such an engine may have.
VALUES = {
    "max_model_len": 512, "max_num_seqs": 4, "max_num_batched_tokens": 2048, "kv_cache_dtype": "fp8_e5m2",
    "enable_prefix_caching": True, "enable_chunked_prefill": True, "tensor_parallel_size": 2, "pipeline_parallel_size": 2,
    "gpu_memory_utilization": 0.8, "block_size": 64, "enforce_eager": True, "speculative_model": "ngram",
    "num_speculative_tokens": 4, "lora_modules": (f"style={demo.MODEL}",), "limit_mm_per_prompt": "image=2",
    "attn_implementation": "flashinfer",
}  # fmt: skip


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return unquantized(open_model(demo.MODEL))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The fakes on the PATH under their engines' names."""
    folder = tmp_path_factory.mktemp("bin")
    for name, program in PROGRAMS.items():
        path = folder / program
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {ENGINES / name}.py "$@"\n')
        path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("LLMOPT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(triton, "FRONTEND", str(ENGINES / "triton.py"))
        yield


def start(name: str, artifact: Artifact, log: Path, **options):  # type: ignore[no-untyped-def]
    """The fake under its engine's description; a CPU will do for it."""
    backend = replace(serve.backend(name), devices=("cpu",))
    chosen = ServeOptions(backend=name, **options)
    return serving(backend, artifact, chosen, environments.current(), log=log, ready_timeout_s=20)


@pytest.fixture(scope="module", params=DESCRIBED)
def started(
    request: pytest.FixtureRequest, programs: None, artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
):  # type: ignore[no-untyped-def]
    with start(request.param, artifact, tmp_path_factory.mktemp("log") / "log", max_num_seqs=4) as server:
        yield server


@pytest.fixture(scope="module")
def run(started: RunningServer) -> RunResult:
    command = started.command
    target = Target(
        base_url=command.base_url,
        model=command.model,
        pid=started.pid,
        load_s=started.load_s,
        usage_per_chunk=command.usage_per_chunk,
    )
    traffic = Traffic(
        salt="described", source=demo.CALIBRATION_TEXT.read_text(), tokenizer=load_tokenizer(str(demo.MODEL))
    )
    return measure(target, WORKLOAD, traffic)


def test_it_is_ready_and_answers(started: RunningServer) -> None:
    assert completes(started.command, 5)


def test_it_is_measured(run: RunResult) -> None:
    assert [t.error for t in run.traces] == [None] * WORKLOAD.requests
    assert run.metrics["ttft_s"]["p50"] > 0.009


def test_what_it_counts_lies_where_the_description_says(started: RunningServer) -> None:
    backend = serve.backend(started.backend)
    if not backend.metrics:
        pytest.skip("its metrics are not at the server's address")
    root = started.command.base_url.removesuffix("/v1")
    with urllib.request.urlopen(root + backend.metrics_path, timeout=5) as response:
        text = response.read().decode()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert set(backend.metrics.values()) <= families


def test_it_is_recognised_behind_its_address(started: RunningServer) -> None:
    found = recognise(started.command.base_url)
    assert found.engine == started.backend
    assert found.evidence
    assert (found.metrics_url is not None) == bool(serve.backend(started.backend).metrics)


@pytest.mark.parametrize("name", DESCRIBED)
def test_nothing_of_it_is_left(name: str, programs: None, artifact: Artifact, tmp_path: Path) -> None:
    with start(name, artifact, tmp_path / "log") as server:
        port = server.command.base_url.rpartition(":")[2].removesuffix("/v1")
        assert all(Path(file).exists() for file in server.command.files)
    assert gone_within(f"port {port}", 5)
    assert not any(Path(file).exists() for file in server.command.files)
    assert not list((environments.home() / "launch").glob(f"*-{port}"))


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_engine_knows_every_word_that_our_options_become(
    name: str, programs: None, artifact: Artifact, tmp_path: Path
) -> None:
    known = {option: VALUES[option] for option in serve.backend(name).flags if option in VALUES}
    assert len(known) >= 10
    with start(name, artifact, tmp_path / "log", **known) as server:
        assert completes(server.command, 5)


# What alone is refused before any engine sees it: a number of guesses that nobody makes.
ALONE = [
    (name, option)
    for name in DESCRIBED
    for option in serve.backend(name).flags
    if option in VALUES and option != "num_speculative_tokens"
]


@pytest.mark.parametrize(("name", "option"), ALONE, ids=lambda value: value)
def test_the_engine_takes_each_option_alone(
    name: str, option: str, programs: None, artifact: Artifact, tmp_path: Path
) -> None:
    chosen = ServeOptions(backend=name, **{option: VALUES[option]})
    command = command_of(serve.backend(name), artifact, chosen, environments.current())
    with prepared(command):
        parsed = subprocess.run(
            command.argv,
            env=os.environ | command.environment | {PARSE_ONLY: "1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert (parsed.returncode, parsed.stdout) == (0, "parsed\n"), parsed.stderr


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_word_that_the_engine_does_not_know_is_its_own_error(
    name: str, programs: None, artifact: Artifact, tmp_path: Path
) -> None:
    with (
        pytest.raises(ServerError, match=f"{name} died while loading") as caught,
        start(name, artifact, tmp_path / "log", extra_args=("--no-such-word",)),
    ):
        pass
    assert "--no-such-word" in caught.value.message


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_container_gets_the_model_read_only_and_listens_on_the_loopback_address_alone(
    name: str, artifact: Artifact
) -> None:
    command = command_of(serve.backend(name), artifact, ServeOptions(backend=name), None, port=None)
    words = list(command.argv)
    assert words[:3] == ["docker", "run", "--rm"]
    assert f"{artifact.path}:/model:ro" in words
    assert words[words.index("--publish") + 1].startswith("127.0.0.1:")
    assert words[words.index("--gpus") + 1] == "all"
    assert command.cleanup[:2] == ("docker", "rm")
    assert not any(str(environments.home()) in word for word in words[words.index("--shm-size") :])


DOCKER = """\
#!/bin/sh
# What docker run does to a signal: its client ends, the container goes on until it is removed by its name.
if [ "$1" = rm ]; then kill "$(cat {folder}/$3)"; rm {folder}/$3; exit 0; fi
while [ "$1" != sglang ]; do [ "$1" = --name ] && name="$2"; shift; done
setsid "$@" &
echo $! > {folder}/$name
wait
"""


def test_a_container_that_outlives_its_client_is_removed(programs: None, artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(DOCKER.format(folder=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    sglang = serve.backend("sglang")
    assert sglang.container is not None
    backend = replace(sglang, devices=("cpu",), container=replace(sglang.container, devices=("cpu",)))
    with (
        pytest.MonkeyPatch.context() as patch,
        serving_in(patch, tmp_path, backend, artifact) as server,
    ):
        name = server.command.cleanup[3]
        container = int((tmp_path / name).read_text())
        assert psutil.pid_exists(container)
    assert not (tmp_path / name).exists()
    assert gone_within(f"--port {server.command.base_url.rpartition(':')[2].removesuffix('/v1')}", 5)


def serving_in(patch: pytest.MonkeyPatch, folder: Path, backend: serve.Backend, artifact: Artifact):  # type: ignore[no-untyped-def]
    """A server in the container of a docker that lies in ``folder``."""
    patch.setenv("PATH", str(folder), prepend=":")
    options = ServeOptions(backend=backend.name)
    return serving(backend, artifact, options, None, log=folder / "log", ready_timeout_s=20)


LLMOPT = """
import sys
from dataclasses import replace
from llmopt.serve import sglang
image = replace(sglang.BACKEND.container, devices=("cpu",))
sglang.BACKEND = replace(sglang.BACKEND, devices=("cpu",), container=image)
from llmopt.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_container_does_not_outlive_an_llmopt_that_is_ended_by(
    number: signal.Signals, programs: None, tmp_path: Path
) -> None:
    (tmp_path / "docker").write_text(DOCKER.format(folder=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    words = ("serve", "demo", "--backend", "sglang", "--container", "--json")
    path = f"{tmp_path}:{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-c", LLMOPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PATH": path},
    ) as llmopt:
        assert llmopt.stdout is not None
        try:
            assert llmopt.stdout.readline()  # it serves
            (place,) = tmp_path.glob("llmopt-sglang-*")
            container = psutil.Process(int(place.read_text()))
            llmopt.send_signal(number)
            assert llmopt.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        finally:
            llmopt.kill()
    assert gone_within(f"--port {place.name.split('-')[2]}", 15)
    assert not container.is_running()
    assert not place.exists()
