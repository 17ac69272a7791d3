"""``llmopt serve`` from outside: in the foreground until Ctrl-C, or only its command."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from llmopt import demo
from llmopt.core.artifacts import open_model, unquantized
from llmopt.core.domain import Case, ServeOptions, Workload
from llmopt.core.errors import UsageError
from llmopt.pipeline import hosting
from llmopt.serve.options import BY_NAME, command_words

SERVE = [sys.executable, "-m", "llmopt", "serve", "demo"]


@pytest.fixture
def environment(tmp_path):
    return os.environ | {"LLMOPT_HOME": str(tmp_path / "home")}


@pytest.fixture
def served(environment, request, tmp_path):
    """A scripted server in the foreground; its process and the document that it prints.  ``stubborn``: deaf to SIGTERM."""
    command = [*SERVE, "--backend", "scripted", "--json"]
    if getattr(request, "param", None) == "stubborn":
        deaf = "import signal, sys\nif 'scripted_server' in str(sys.orig_argv):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        (tmp_path / "sitecustomize.py").write_text(deaf)
        environment["PYTHONPATH"] = str(tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    text = ""
    for line in iter(process.stdout.readline, ""):
        text += line
        if line == "}\n":
            break
    yield process, json.loads(text)
    process.kill()
    process.communicate()


def refused(environment, *options):
    done = subprocess.run([*SERVE, *options], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_it_answers_until_it_is_interrupted(served):
    process, document = served
    body = json.dumps({"model": document["model"], "prompt": "Hello", "max_tokens": 3}).encode()
    request = urllib.request.Request(document["url"] + "/completions", body, {"Content-Type": "application/json"})
    assert json.load(urllib.request.urlopen(request, timeout=10))["choices"]
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert tree
    assert not any(p.is_running() for p in tree)


@pytest.mark.parametrize("served", ["stubborn"], indirect=True)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_a_hanging_engine_is_stopped_it_waits_for_the_end(served, first):
    process, document = served
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(first)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert not any(p.is_running() for p in tree)
    assert f"still stopping, pid {document['pid']}" in words
    assert "before the server was ready" not in words
    assert process.returncode == (0 if first is signal.SIGINT else 128 + signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_in_order_too(served, number):
    process, _ = served
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert tree
    assert not any(p.is_running() for p in tree)


def test_the_same_case_served_twice_has_two_logs(served, environment):
    second = subprocess.Popen(
        [*SERVE, "--backend", "scripted", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        assert second.stdout.readline()
        assert len(list(Path(environment["LLMOPT_HOME"]).glob("logs/serve-*-scripted-*.log"))) == 2
    finally:
        second.terminate()
        second.communicate(timeout=20)


def test_the_last_words_of_an_engine_are_shown(tmp_path, capsys):
    """It dies between two looks at its log."""
    (tmp_path / "log").write_text("")
    states = iter([True, False])

    class Dying:
        log = tmp_path / "log"

        @property
        def running(self):
            if not (alive := next(states, False)):
                self.log.write_text("RuntimeError: the last word\n")
            return alive

    server = SimpleNamespace(backend="scripted", process=Dying(), require_alive=lambda *_: None)
    hosting.follow(server)
    assert "the last word" in capsys.readouterr().err


def test_interrupted_while_it_starts_is_said_in_words_of_its_own(environment):
    command = [*SERVE, "--backend", "scripted", "--extra-arg=--fault", "--extra-arg=hang"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    folder, deadline = Path(environment["LLMOPT_HOME"]) / "logs", time.monotonic() + 20
    while not list(folder.glob("*.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted before the server was ready" in words
    assert "kept" not in words


def test_a_dry_run_shows_no_secret(environment):
    done = refused(
        environment, "--backend", "scripted", "--dry-run", "--json", "--extra-arg=--api-key", "--extra-arg=sk-123"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["options"]["extra_args"] == ["--api-key", "***"]
    assert "sk-123" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["sglang", "trtllm", "lmdeploy"])
def test_a_dry_run_needs_no_engine(environment, name):
    path = os.pathsep.join(["/usr/bin", "/bin"])
    done = refused(environment | {"PATH": path}, "--backend", name, "--dry-run", "--json")
    assert done.returncode == 0
    assert "/" not in json.loads(done.stdout)["argv"][0]
    assert str(demo.MODEL) in json.loads(done.stdout)["argv"]
    assert "warning: no environment here has" in done.stderr


def test_a_dry_run_warns_of_a_context_that_has_no_room_here(environment):
    done = refused(environment, "--backend", "hf", "--dry-run", "--max-num-seqs", "99999999")
    assert done.returncode == 0
    assert "warning:" in done.stderr
    assert "1024 tokens × 99999999 sequences" in done.stderr


def test_a_dry_run_warns_of_a_kernel_and_a_port_that_are_not_here(environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        kernel = ("--attn-implementation", "flash_attention_3")
        done = refused(environment, "--backend", "hf", "--dry-run", "--port", port, *kernel)
    assert done.returncode == 0
    assert f"--port {port}" in done.stdout
    assert f"warning: port {port} is in use" in done.stderr
    assert "warning: flash_attention_3 needs the package flash_attn_interface" in done.stderr


@pytest.mark.parametrize("engine", ["sglang", "tgi", "lmdeploy"])
@pytest.mark.parametrize(
    ("modules", "told"),
    [
        (["nonsense"], "a name and a place"),
        ([f"a={demo.MODEL}", f"a={demo.MODEL.parent}"], "two adapters of the name a"),
    ],
)
def test_adapters_are_checked_for_every_engine(engine, modules, told):
    artifact = unquantized(open_model(demo.MODEL))
    case = Case(artifact=artifact, serve=ServeOptions(backend=engine, lora_modules=tuple(modules)), workload=Workload())
    with pytest.raises(UsageError, match=told):
        hosting.command_document(case, hosting.Place(container=True))


def test_an_adapter_with_a_comma_is_refused_where_commas_part_them(tmp_path):
    (tmp_path / "a,b").mkdir()
    options = ServeOptions(backend="tgi", lora_modules=(f"style={tmp_path}/a,b",))
    case = Case(artifact=unquantized(open_model(demo.MODEL)), serve=options, workload=Workload())
    with pytest.raises(UsageError, match="a comma in"):
        hosting.command_document(case, hosting.Place())


def test_a_context_beyond_the_models_own_fails_everywhere(environment):
    done = refused(environment, "--backend", "vllm", "--dry-run", "--max-model-len", "4096")
    assert done.returncode == 2
    assert "error: --max-model-len 4096: this model has positions for 1024 tokens" in done.stderr


def test_an_engine_that_dies_in_the_foreground_is_an_error(served):
    process, document = served
    psutil.Process(document["pid"]).kill()
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "error: scripted died while it served" in words


def test_a_dry_run_prints_a_command_that_a_shell_can_read(environment):
    own = ("--extra-arg=--ttft-ms", "--extra-arg", "5")
    done = refused(environment, "--backend", "scripted", "--dry-run", "--max-num-seqs", "3", *own)
    words = shlex.split(done.stdout)
    assert done.returncode == 0
    assert words[words.index("--max-num-seqs") + 1] == "3"
    assert words[words.index("--ttft-ms") + 1] == "5"


def test_an_option_that_the_engine_lacks_is_a_word_wrongly_used(environment):
    done = refused(environment, "--backend", "scripted", "--gpu-layers", "3", "--dry-run")
    assert done.returncode == 2
    assert "error: scripted has no --gpu-layers" in done.stderr
    assert "llamacpp" in done.stderr


def test_an_image_without_a_container(environment):
    assert "--image is of --container" in refused(environment, "--image", "x", "--dry-run").stderr


def test_a_choice_that_there_is_not(environment):
    done = refused(environment, "--backend", "hf", "--batching", "sometimes", "--dry-run")
    assert done.returncode == 2
    assert "--batching is continuous or static" in done.stderr


def test_every_field_has_its_line_in_the_table():
    from dataclasses import fields

    assert {f.name for f in fields(ServeOptions)} == {*BY_NAME, "backend"}


def test_options_as_words_are_what_was_asked():
    options = ServeOptions(
        backend="vllm",
        enable_prefix_caching=False,
        gpu_memory_utilization=0.5,
        lora_modules=("a=x", "b=y"),
        extra_args=("--z",),
    )
    assert command_words(options) == [
        "--backend", "vllm", "--max-num-seqs", "4", "--extra-arg=--z", "--no-enable-prefix-caching",
        "--gpu-memory-utilization", "0.5", "--lora-modules", "a=x", "--lora-modules", "b=y",
    ]  # fmt: skip
