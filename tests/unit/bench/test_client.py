import json
import socket
import time
from itertools import accumulate

import pytest

from llmopt.bench.client import API_KEY_VARIABLE, Endpoint, run_load, trace
from llmopt.bench.schedule import ClosedLoop, PlannedRequest, closed_loop
from llmopt.core.domain import Workload
from llmopt.core.metrics import METRICS, Window, tokens_in
from unit.make import ns

NEAR_S = 0.015


def load(target, requests=8, concurrency=4, timeout_s=10.0, endpoint="completions", output_tokens=8):
    workload = Workload(
        output_tokens=output_tokens, concurrency=concurrency, endpoint=endpoint, request_timeout_s=timeout_s
    )
    texts = tuple(f"prompt {n}" for n in range(requests))
    schedule = closed_loop(workload, texts, "scripted", prompt_tokens=None, usage_per_chunk=True)
    return run_load(schedule, target.base_url, endpoint)


def errors(result):
    return {t.error for t in result.traces}


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_request_is_answered_whole_and_in_order(scripted, endpoint):
    result = load(scripted(), endpoint=endpoint)
    assert [t.index for t in result.traces] == list(range(8))
    assert errors(result) == {None}
    assert {(t.output_tokens, t.finish_reason, t.requested_output_tokens) for t in result.traces} == {(8, "length", 8)}


def test_stamps_are_in_order(scripted):
    for t in load(scripted()).traces:
        points = [t.planned_ns, t.sent_ns, t.first_byte_ns, t.first_token_ns, t.last_token_ns, t.closed_ns]
        assert points == sorted(points)


def test_tokens_are_stamped_when_the_server_wrote_them(scripted, truth):
    target = scripted("--ttft-ms", "60", "--tpot-ms", "15")
    traces = load(target, requests=4, concurrency=1).traces
    for t, row in zip(traces, truth(target), strict=True):
        counts = accumulate(c.tokens for c in t.chunks)
        late = [c.at_ns - row["token_ns"][count - 1] for c, count in zip(t.chunks, counts, strict=True)]
        assert min(late) >= 0
        assert sorted(late)[len(late) // 2] < ns(NEAR_S)


def test_latencies_are_those_of_the_script(scripted):
    traces = load(scripted("--ttft-ms", "80", "--tpot-ms", "20"), requests=5, concurrency=1).traces
    for name, expected in (("ttft", 0.08), ("ttft_service", 0.08), ("tpot", 0.02), ("e2e", 0.08 + 7 * 0.02)):
        middle = sorted(METRICS[name].of_request(t) for t in traces)[2]
        assert middle == pytest.approx(expected, abs=NEAR_S)


def test_a_queue_in_the_server_is_part_of_the_latency(scripted):
    traces = load(scripted("--ttft-ms", "50", "--tpot-ms", "1", slots=1), requests=4, concurrency=4).traces
    waits = sorted(METRICS["ttft"].of_request(t) for t in traces)
    assert waits[-1] > waits[0] + 0.1


def test_no_more_requests_run_at_once_than_there_are_users(scripted):
    traces = load(scripted(), requests=12, concurrency=3).traces
    for t in traces:
        assert sum(o.sent_ns < t.closed_ns and t.sent_ns < o.closed_ns for o in traces) <= 2 * 3 - 1
        assert sum(o.planned_ns <= t.planned_ns < o.closed_ns for o in traces) <= 3


def test_a_cut_stream_is_a_failure_that_keeps_its_chunks(scripted):
    result = load(scripted("--fault", "cut"))
    assert errors(result) == {"cut: the stream ended without a finish reason"}
    assert {sum(c.tokens for c in t.chunks) for t in result.traces} == {4}


def test_an_error_status_is_a_failure_with_the_servers_words(scripted):
    assert errors(load(scripted("--fault", "error"))) == {"status 500: scripted error"}


def test_a_slow_answer_times_out(scripted):
    result = load(scripted("--ttft-ms", "5000"), requests=2, concurrency=2, timeout_s=0.2)
    assert all(e.startswith("timeout") for e in errors(result))
    assert all(t.chunks == () for t in result.traces)


def test_no_server_is_a_failure_and_no_exception():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        schedule = closed_loop(Workload(concurrency=1), ("x",), "m", prompt_tokens=1, usage_per_chunk=False)
        (one,) = run_load(schedule, f"http://127.0.0.1:{port}/v1", "completions").traces
    assert one.error.startswith("connection: ")
    assert one.sent_ns is None


def test_a_usage_with_the_finish_reason_is_not_counted_twice():
    """As DeepSeek, Mistral and others stream: the only usage comes in the last choice, whose text is empty."""
    words = [{"choices": [{"text": "x", "finish_reason": None}]}] * 4
    last = {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
    reads = [(n, b"data: " + json.dumps(e).encode() + b"\n\n") for n, e in enumerate([*words, last], 1)]
    planned = PlannedRequest(index=0, body={}, output_tokens=4, prompt_tokens=5)
    one = trace(planned, 0, 0, 9, reads, 200, None)
    assert tokens_in([one], Window(start_ns=0, end_ns=9)) == one.output_tokens == 4


def test_each_finished_request_is_told(scripted):
    told = []
    workload = Workload(output_tokens=2, concurrency=2)
    schedule = closed_loop(workload, ("a", "b", "c"), "m", prompt_tokens=None, usage_per_chunk=True)
    run_load(schedule, scripted().base_url, "completions", told.append)
    assert sorted(t.index for t in told) == [0, 1, 2]


def test_a_schedule_of_nothing_ends_at_once():
    started = time.monotonic()
    result = run_load(ClosedLoop(requests=(), concurrency=2, timeout_s=5), "http://127.0.0.1:9/v1", "completions")
    assert result.traces == ()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "tls"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, "/v1/completions", False),
        ("https://example.org/v1/", "example.org", 443, "/v1/completions", True),
        ("http://localhost", "localhost", 80, "/completions", False),
    ],
)
def test_addresses(url, host, port, path, tls):
    assert Endpoint.of(url, "completions") == Endpoint(host=host, port=port, path=path, tls=tls)


def test_the_api_key_goes_into_the_header_and_nowhere_else(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    place = Endpoint.of("http://localhost/v1", "chat")
    assert b"\r\nAuthorization: Bearer secret\r\n" in place.request(b"{}")
    assert "secret" not in repr(place)


def test_without_a_key_there_is_no_such_header(monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert b"Authorization" not in Endpoint.of("http://localhost/v1", "chat").request(b"{}")
