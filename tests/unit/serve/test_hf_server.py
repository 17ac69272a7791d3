"""The transformers server's HTTP half with a played engine: what it refuses, and how; and how the other half ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys

import pytest

from llmopt import demo
from llmopt.serve.shims import hf_server
from llmopt.serve.shims.hf_counters import Counters
from llmopt.serve.shims.hf_news import News

pytest.importorskip("starlette")
pytest.importorskip("jinja2")


class Played:
    """An engine that answers every request with the same token."""

    def __init__(self, arguments):
        self.context_length, self.counters, self.queues = 64, Counters(), {}

    async def generate(self, ids, max_tokens, end_ids, times):
        yield News(request="r", tokens=[5] * max_tokens, finished=True)


@pytest.fixture
def ask(monkeypatch, request):
    """Posts a body, bytes or what becomes JSON; returns status and document. A parameter is the name that it is served by."""
    monkeypatch.setattr(hf_server, "Engine", Played)
    named = getattr(request, "param", None)
    application = hf_server.application(argparse.Namespace(model=str(demo.MODEL), served_model_name=named))

    def post(body, path="/v1/completions"):
        sent, came = body if isinstance(body, bytes) else json.dumps(body).encode(), []

        async def receive():
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message):
            came.append(message)

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": [], "scheme": "http", "server": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip
        asyncio.run(application(scope, receive, send))
        return came[0]["status"], json.loads(b"".join(m.get("body", b"") for m in came[1:]))

    return post


def test_a_good_body_is_answered(ask):
    status, answer = ask({"model": demo.MODEL.name, "prompt": [1, 2], "max_tokens": 3, "temperature": 0.0})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 3)


@pytest.mark.parametrize("ids", [[99_999_999], [1, -1], [True], [1.0], [], [[1]]])
def test_ids_that_are_no_tokens_are_refused(ask, ids):
    status, answer = ask({"prompt": ids})
    assert status == 400
    assert "token ids" in answer["error"]["message"]


def test_the_last_token_of_the_vocabulary_is_one(ask):
    size = json.loads((demo.MODEL / "config.json").read_text())["vocab_size"]
    assert [ask({"prompt": [size - 1]})[0], ask({"prompt": [size]})[0]] == [200, 400]


@pytest.mark.parametrize("ask", ["a name"], indirect=True)
def test_it_may_have_another_name_than_its_folder(ask):
    assert ask({"model": "a name", "prompt": [1], "max_tokens": 1})[1]["model"] == "a name"
    assert ask({"model": demo.MODEL.name, "prompt": [1]})[0] == 404


def test_another_model_is_not_there(ask):
    status, answer = ask({"model": "nosuch", "prompt": "x"})
    assert status == 404
    assert "nosuch" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "object"),
        ("x", "object"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        ({"prompt": "x", "max_tokens": [1]}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_completion_tokens": 0, "max_tokens": 3}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "stream_options": 5}, "stream_options"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "model": 7}, "model"),
        ({"prompt": "x", "temperature": [0]}, "temperature"),
        ({"messages": 5}, "messages"),
        ({"messages": ["x"]}, "messages"),
        ({"prompt": "\ud800"}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_a_bad_body_is_refused_with_a_reason(ask, body, word):
    status, answer = ask(body)
    assert status == 400
    assert word in answer["error"]["message"]


def test_an_engine_whose_thread_ended_ends_with_its_exception():
    code = """
import threading, time
from types import SimpleNamespace
from llmopt.serve.shims.hf_engine import die_with
thread = threading.Thread(target=lambda: None)
thread.start()
status = SimpleNamespace(fatal_error=IndexError("index out of range in self"))
threading.Thread(target=die_with, args=(SimpleNamespace(_generation_thread=thread, background_thread_status=status),)).start()
time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "IndexError: index out of range in self" in done.stderr


@pytest.mark.parametrize(
    ("error", "returncode"),
    [('RuntimeError("CUDA error: device-side assert triggered")', 1), ('MemoryError("CUDA out of memory")', 0)],
)
def test_a_static_batch_that_fails_is_the_end_unless_memory_ran_out(error, returncode):
    code = f"""
import argparse, time
from llmopt.serve.shims.hf_static import StaticBatches
def fail(self, rows):
    raise {error}
StaticBatches.run = fail
told = []
StaticBatches(None, argparse.Namespace(max_num_seqs=1), 64, told.extend).add("r", [1], 1, [])
time.sleep(1)
print(told[0].error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == returncode
    assert error.partition('"')[2][:9] in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", 0), ("echo", True), ("min_tokens", 3), ("best_of", 2), ("suffix", "x"), ("frequency_penalty", 0.5),
     ("logit_bias", {"1": 2}), ("response_format", {"type": "json_object"}), ("tools", [{}])],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(ask, field, value):
    status, answer = ask({"prompt": "x", "max_tokens": 2, field: value})
    assert status == 400
    assert field in answer["error"]["message"]


def test_fields_that_ask_for_nothing_are_taken(ask):
    nothing = {"logprobs": None, "echo": False, "best_of": 1, "frequency_penalty": 0.0, "tools": []}
    fixed = {"min_tokens": 2, "ignore_eos": True}
    assert ask({"prompt": "x", "max_tokens": 2, **nothing, **fixed})[0] == 200


def test_parts_of_text_are_one_content(ask):
    def prompt_tokens(content):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
        return ask(body, path="/v1/chat/completions")[1]["usage"]["prompt_tokens"]

    assert prompt_tokens([{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]) == prompt_tokens("a b c")


def test_the_line_about_memory_is_one_write(monkeypatch):
    class Unbuffered:
        def __init__(self):
            self.writes = []

        def write(self, text):
            self.writes.append(text)

        def flush(self):
            pass

    log = Unbuffered()
    monkeypatch.setattr(sys, "stdout", log)
    hf_server.tell({"baseline_bytes": None, "weights_bytes": 2})
    assert log.writes == ['llmopt facts: {"baseline_bytes": null, "weights_bytes": 2}\n']
