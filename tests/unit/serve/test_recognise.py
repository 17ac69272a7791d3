"""Which engine is behind an address; the engines' own answers are played in tests/contract/test_described.py."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time

import pytest

from llmopt.serve.recognise import recognise
from unit.serve.raw import raw_server


@contextlib.contextmanager
def server(pages, headers=None):
    """A server that has these GET pages (text or JSON); yields its base URL and the list of what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            page = pages.get(self.path)
            status, body = (
                (200, page if isinstance(page, str) else json.dumps(page)) if page is not None else (404, "{}")
            )
            if isinstance(page, tuple):
                status, body = 302, ""
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if isinstance(page, tuple):
                self.send_header("Location", page[0])
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1", asked
        listening.shutdown()
        thread.join()


def models(owner):
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}]}


def test_vllm_is_told_by_its_models_and_its_version_page():
    pages = {
        "/v1/models": models("vllm"),
        "/version": {"version": "0.32.0"},
        "/metrics": "vllm:num_requests_running 0\n",
    }
    with server(pages) as (url, _):
        found = recognise(url)
    assert (found.engine, found.version) == ("vllm", "0.32.0")
    assert found.metrics_url == url.removesuffix("/v1") + "/metrics"
    assert found.metrics["running"] == "vllm:num_requests_running"


def test_llama_cpp_is_told_by_its_header_where_its_models_are_hidden():
    with server({"/props": {"build_info": "b9049-0c1e570"}}, {"Server": "llama.cpp"}) as (url, _):
        found = recognise(url)
    # The header of a page that was refused tells nothing: whoever stands before it may have refused it.
    assert found.engine is None
    with server({"/v1/models": {}, "/props": {"build_info": "b9049-0c1e570"}}, {"Server": "llama.cpp"}) as (url, _):
        found = recognise(url)
    assert (found.engine, found.version) == ("llamacpp", "b9049-0c1e570")


def test_an_engine_without_its_metrics_page_is_known_without_metrics():
    with server({"/v1/models": models("sglang")}) as (url, _):
        found = recognise(url)
    assert (found.engine, found.metrics_url, found.metrics) == ("sglang", None, {})


def test_an_engine_behind_a_gateway_is_told_by_the_names_of_its_metrics():
    with server({"/v1/models": models("us"), "/metrics": "# HELP x\nlmdeploy:num_requests_running 0\n"}) as (url, _):
        assert recognise(url).engine == "lmdeploy"


def test_a_stranger_stays_unknown_after_a_handful_of_questions():
    with server({"/v1/models": models("somebody")}) as (url, asked):
        found = recognise(url)
    assert (found.engine, found.version, found.evidence) == (None, None, ())
    assert len(asked) <= 6


def test_nobody_there_is_unknown_too():
    assert recognise("http://127.0.0.1:9/v1").engine is None


@pytest.mark.parametrize("garbage", ["not json", "[1, 2]", '{"data": [1, null]}', '{"data": 3}'])
def test_answers_that_make_no_sense_are_no_error(garbage):
    with server({"/v1/models": garbage}) as (url, _):
        assert recognise(url).engine is None


def test_a_key_is_sent_to_this_host_and_to_no_other():
    with server({"/v1/models": models("vllm")}) as (elsewhere, asked_elsewhere):
        pages = {"/v1/models": (elsewhere + "/models",)}
        with server(pages) as (url, asked):
            recognise(url, {"Authorization": "Bearer sk-123"})
    assert asked[0][1]["Authorization"] == "Bearer sk-123"
    assert asked_elsewhere == []


def test_a_user_in_the_address_is_not_part_of_the_host():
    with server({"/v1/models": models("vllm")}) as (url, _):
        assert recognise(url.replace("http://", "http://user:word@")).engine == "vllm"


@pytest.mark.parametrize(("answer", "drip_s"), [(b"SSH-2.0-OpenSSH_9.6\r\n", 0), (b"HTTP/1.1 200 OK\r\n\r\nx", 0.05)])
def test_what_speaks_no_http_or_never_ends_stays_unknown(monkeypatch, answer, drip_s):
    monkeypatch.setattr("llmopt.serve.recognise.TIMEOUT_S", 0.5)
    with raw_server(answer, drip_s) as root:
        started = time.monotonic()
        assert recognise(f"{root}/v1").engine is None
        assert time.monotonic() - started < 6
