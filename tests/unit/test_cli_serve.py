"""``llmopt serve`` from outside: in the foreground until Ctrl-C, or only its command."""

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request

import psutil
import pytest

from llmopt.core.domain import ServeOptions
from llmopt.serve.options import BY_NAME, command_words

SERVE = [sys.executable, "-m", "llmopt", "serve", "demo"]


@pytest.fixture
def environment(tmp_path):
    return os.environ | {"LLMOPT_HOME": str(tmp_path / "home")}


@pytest.fixture
def served(environment):
    """A scripted server in the foreground; its process and the document that it prints."""
    command = [*SERVE, "--backend", "scripted", "--json"]
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
