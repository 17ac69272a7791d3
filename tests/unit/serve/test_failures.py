"""What each log means; the logs are in tests/logs, real where they could be made here."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from llmopt.core.domain import ServerCommand
from llmopt.core.errors import ServerError
from llmopt.core.process import KeptProcess
from llmopt.serve import backend, failures, process

LOGS = Path(__file__).parents[2] / "logs"
# The log → the row of failures.toml that explains it, and what it names.
MEANS = {
    "recorded/cuda-memory": ("gpu memory", "1.02 GiB"),
    "recorded/cuda-memory-llamacpp": ("gpu memory", ""),
    "real/torch-memory": ("memory", "4503599627370496 bytes"),
    "recorded/devices": ("devices", "cuda:0 and cpu"),
    "real/torch-token-id": ("token id", ""),
    "recorded/cuda-token-id": ("token id", ""),
    "real/vllm-blocksize": ("block size", "17"),
    "recorded/block-size-triton": ("block size", ""),
    "recorded/driver": ("driver", "11040"),
    "real/vllm-quantization": ("quantization", ""),
    "recorded/quantization-vllm": ("quantization", "exl2"),
    "real/llamacpp-cut": ("gguf", "failed to read key-value pairs"),
    "real/vllm-gguf": ("gguf", ""),
    "real/vllm-path": ("no model", "/nowhere/model"),
    "real/hf-path": ("no model", ""),
    "real/llamacpp-path": ("no model", "/nowhere/model.gguf"),
    "real/vllm-argument": ("keyword", "--no-such-option"),
    "real/hf-argument": ("keyword", "--no-such"),
    "real/llamacpp-argument": ("keyword", "--no-such-option"),
    "recorded/kv-blocks": ("kv blocks", ""),
    "real/vllm-port": ("port", ""),
    "real/hf-port": ("port", ""),
    "real/llamacpp-port": ("port", "8393"),
    "real/server-model-key": ("model key", "model"),
    "recorded/request-without-model": ("model key", "model"),
    "real/docker-daemon": ("docker daemon", ""),
    "recorded/docker-gpu": ("docker gpu", ""),
    "recorded/docker-name": ("docker name", "llmopt-sglang-8123"),
    "recorded/gpu-architecture": ("gpu architecture", ""),
    "recorded/shared-memory": ("shared memory", ""),
    "recorded/docker-image": ("docker image", "openmmlab/lmdeploy:v9.9.9"),
    "real/client-refused": ("connection refused", ""),
    "real/client-json": ("stream json", ""),
}
ROWS = {row["name"]: row for row in tomllib.loads(failures.TABLE.read_text())["failure"]}


def log(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


@pytest.mark.parametrize("name", MEANS)
def test_a_log_is_explained_by_its_cause_and_a_remedy(name):
    row, detail = MEANS[name]
    cause = ROWS[row]["cause"]
    assert failures.explain((), log(name)) == (f"{cause}: {detail}" if detail else cause, ROWS[row]["remedy"])


def test_every_row_has_a_log():
    assert {row for row, _ in MEANS.values()} == set(ROWS)


@pytest.mark.parametrize(
    ("name", "engine", "cause"),
    [
        ("harmless-memory", "hf", "ValueError: Unrecognized rope scaling 'sideways'"),
        ("harmless-file", "hf", "AssertionError: 18 is not divisible by 4"),
        ("harmless-bind", "llamacpp", "llama.cpp does not load this file: unknown model architecture: 'strange'"),
    ],
)
def test_lines_that_do_no_harm_do_not_beat_what_ended_it(name, engine, cause):
    assert failures.explain(backend(engine).failures, log(f"recorded/{name}"), returncode=1)[0] == cause


@pytest.mark.parametrize(
    "news",
    [
        "INFO 11-21 18:46:36 [config.py:9] No such file or directory: '/m/generation_config.json'",
        "(APIServer pid=7) INFO: dashboard: Address already in use, trying the next port",
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "hf", "sglang"])
def test_mere_news_do_not_beat_an_exception_that_nobody_knows(news, engine):
    lines = [news, "ValueError: Unsupported head size 13"]
    assert failures.explain(backend(engine).failures, lines) == (lines[1], None)


def test_the_root_is_explained_before_any_other_line():
    lines = [
        "the config names no chat template: '/m' is not a local folder",
        "OSError: [Errno 98] Address already in use",
    ]
    assert failures.explain((), lines)[0] == ROWS["port"]["cause"]


def test_the_root_is_the_workers_exception_and_not_what_others_wrote_around_it():
    found = failures.explain((), log("recorded/worker-of-vllm"), returncode=1)
    assert found == ("AssertionError: 18 is not divisible by 4", None)


def test_a_validation_error_is_said_with_its_field():
    cause, _ = failures.explain((), log("real/vllm-context"))
    assert "max_model_len (99999999) is greater than the derived" in cause


def test_what_the_engine_itself_knows_comes_first():
    cause, remedy = failures.explain(backend("vllm").failures, log("real/vllm-context"))
    assert "99999999" in cause
    assert "--max-model-len" in remedy


def test_nothing_is_made_up_where_nothing_was_said():
    assert failures.explain((), ["INFO: all is well"], returncode=1) is None
    assert failures.last_words(["INFO: all is well"]) == "INFO: all is well"


@pytest.mark.parametrize("returncode", [-9, 137])
def test_a_kill_while_the_kernel_was_short_of_memory_is_one_for_lack_of_memory(returncode, monkeypatch, tmp_path):
    monkeypatch.setattr(failures, "KILLS_BEFORE", 3)
    monkeypatch.setattr(failures, "VMSTAT", tmp_path / "vmstat")
    (tmp_path / "vmstat").write_text("nr_free_pages 812\noom_kill 4\nnuma_hit 9\n")
    cause, remedy = failures.explain((), [], returncode=returncode)
    assert "ran out of memory" in cause
    assert "quantization" in remedy


def test_a_kill_elsewhere_on_the_machine_does_not_explain_an_exception(monkeypatch, tmp_path):
    monkeypatch.setattr(failures, "KILLS_BEFORE", 3)
    monkeypatch.setattr(failures, "VMSTAT", tmp_path / "vmstat")
    (tmp_path / "vmstat").write_text("oom_kill 4\n")
    assert failures.explain((), ["ValueError: no"], returncode=1) == ("ValueError: no", None)
    assert "ran out of memory" in failures.explain((), ["said nothing"], returncode=1)[0]


def test_a_kill_without_lack_of_memory_was_somebody_elses(monkeypatch, tmp_path):
    monkeypatch.setattr(failures, "KILLS_BEFORE", 4)
    monkeypatch.setattr(failures, "VMSTAT", tmp_path / "vmstat")
    (tmp_path / "vmstat").write_text("oom_kill 4\n")
    assert "not sent from here" in failures.explain((), [], returncode=-9)[0]


def test_where_the_kernel_does_not_count_nothing_is_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(failures, "VMSTAT", tmp_path / "none")
    assert failures.oom_kills() is None
    assert failures.explain((), [], returncode=1) is None


# --- a server that fails, as the user meets it -----------------------------------------------------------------------

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status); self.send_header("content-length", str(len(text))); self.end_headers(); self.wfile.write(text)
    def do_GET(self): self.answer(200, b"")
    def do_POST(self): {post}
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def failing(tmp_path, post):
    """The error of a server that is healthy and does ``post`` at a completion."""
    port = process.free_port(None)
    command = ServerCommand(
        argv=(sys.executable, "-c", SERVER.format(post=post), str(port)),
        base_url=f"http://127.0.0.1:{port}/v1",
        model="m",
    )
    with (
        KeptProcess(command.argv, log=tmp_path / "log") as kept,
        pytest.raises(ServerError) as caught,
    ):
        process.wait_until_ready(backend("hf"), command, kept, 4)
    return caught.value


def test_a_server_that_is_healthy_and_dies_at_its_first_request_is_found_out(tmp_path):
    error = failing(tmp_path, "print('gguf_init_from_reader: failed to read tensors', flush=True); os._exit(1)")
    assert (
        "says that it is healthy, and died at its first request: the engine cannot read this GGUF file" in error.message
    )


def test_a_server_that_refuses_its_first_request_is_quoted(tmp_path):
    error = failing(tmp_path, "self.answer(500, b'weights are garbage')")
    assert "it answers HTTP 500: weights are garbage" in error.message


def test_a_server_killed_from_outside_says_so(tmp_path):
    error = failing(tmp_path, "os.kill(os.getpid(), 9)")
    assert "SIGKILL ended it: not sent from here" in error.message
