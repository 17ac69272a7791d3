"""The reference that load clients are measured against: it must do what its script says, and log what it did."""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time

import pytest

from llmopt.serve.scripted import SERVER
from llmopt.serve.shims.scripted_traps import TRAPS

FAST = "ttft_ms=10&tpot_ms=5"
LATE_NS = 20_000_000  # a busy machine may be so late, a wrong script is later


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A scripted server and what one asks of it."""

    def __init__(self, port):
        self.port = port

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def get(self, path, method="GET", body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), json.load(response)

    def post(self, settings="", path="/v1/completions", headers=None, **body):
        return self.get(path, "POST", json.dumps(completion(settings, **body)), headers)

    def raw(self, settings="", path="/v1/completions", **body):
        """All bytes of one stream, until it ends or the connection does."""
        with self.connect() as sock:
            sock.sendall(request(settings, path, **body))
            return read_response(sock)

    def log(self, settings):
        return [row for row in self.get("/scripted/log?all=1")[2] if row["model"] == model(settings)]


def model(settings):
    return f"scripted?{FAST}&{settings}"


def completion(settings="", **body):
    prompt = {} if "messages" in body else {"prompt": "one two three"}
    return {"model": model(settings), "max_tokens": 8, **prompt, **body}


def request(settings="", path="/v1/completions", headers="", **body):
    data = json.dumps(completion(settings, **{"stream": True} | body)).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


def read_response(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
            if data.endswith((b"\r\n0\r\n\r\n", b"0\r\nX-Checksum: none\r\n\r\n")):
                break
    return data


def read_to_end(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def events(data):
    lines = [line.removeprefix(b"data: ").strip() for line in data.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]


def texts(data):
    return [event["choices"][0]["text"] for event in events(data) if event.get("choices")]


@contextlib.contextmanager
def running(*arguments):
    port = free_port()
    process = subprocess.Popen([sys.executable, str(SERVER), "--port", str(port), *arguments])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield Running(port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server():
    with running() as one:
        yield one


# The script and the log


@pytest.mark.parametrize("path", ["/v1/completions", "/any/base/v1/chat/completions"])
def test_tokens_are_written_when_the_script_says(server, path):
    settings = f"text=at-{len(path)}"
    chat = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {}
    server.raw(settings, path, **chat)
    (row,) = server.log(settings)
    assert row["first_token_due_ns"] == row["start_ns"] + 10_000_000
    late = [at - row["first_token_due_ns"] - n * 5_000_000 for n, at in enumerate(row["token_ns"])]
    assert len(late) == row["tokens"] == 8
    assert min(late) >= 0
    assert max(late) == row["max_write_lag_ns"] < LATE_NS


def test_stamps_are_in_order_and_before_the_client_reads(server):
    with server.connect() as sock:
        sent_ns = time.monotonic_ns()
        sock.sendall(request("text=order"))
        read_response(sock)
        read_ns = time.monotonic_ns()
    (row,) = server.log("text=order")
    stamps = [sent_ns, row["received_ns"], row["start_ns"], *row["token_ns"], row["finished_ns"]]
    assert stamps == sorted(stamps)
    assert row["token_ns"][-1] < read_ns


def test_a_request_behind_all_slots_waits_for_its_start():
    with running("--max-num-seqs", "1") as one, one.connect() as first, one.connect() as second:
        first.sendall(request("text=first"))
        second.sendall(request("text=second"))
        read_response(first), read_response(second)
        (before,), (behind,) = one.log("text=first"), one.log("text=second")
    assert behind["received_ns"] < before["finished_ns"] <= behind["start_ns"]
    assert behind["first_token_due_ns"] == behind["start_ns"] + 10_000_000


def test_the_log_knows_the_request_by_its_id(server):
    with server.connect() as sock:
        sock.sendall(request("text=id", headers="X-Request-Id: abc\r\n"))
        read_response(sock)
    assert [row["request_id"] for row in server.log("text=id")] == ["abc"]


def test_a_client_that_hangs_up_is_in_the_log_and_frees_its_slot():
    with running("--max-num-seqs", "1") as one:
        with one.connect() as sock:
            sock.sendall(request("text=gone&tpot_ms=50"))
            sock.recv(100)
        assert len(texts(one.raw("text=next"))) == 8
        (row,) = one.log("text=gone&tpot_ms=50")
    assert row["ended"] == "client_gone"
    assert row["tokens"] < 8


def test_the_log_can_be_emptied_and_has_streams_only():
    with running() as one:
        one.raw()
        one.post()
        assert len(one.get("/scripted/log")[2]) == 1
        assert len(one.get("/scripted/log?all=1&clear=1")[2]) == 2
        one.raw()
        assert one.get("/scripted/log", "DELETE")[2] == {"cleared": 1}
        assert one.get("/scripted/log?all=1")[2] == []


def test_stats_say_how_late_the_writes_were():
    with running() as one:
        one.raw()
        stats = one.get("/scripted/stats")[2]
    assert (stats["requests"], stats["chunks"]) == (1, 8)
    assert 0 <= stats["write_lag_p50_ns"] <= stats["write_lag_p99_ns"] <= stats["write_lag_max_ns"] < LATE_NS
    assert 0 < stats["cpu_s"] < 5


def test_many_fast_streams_are_whole_and_on_time():
    with running("--max-num-seqs", "64") as one, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(one.connect()) for _ in range(64)]
        for sock in socks:
            sock.sendall(request("ttft_ms=100&tpot_ms=10", max_tokens=32))
        assert {len(texts(read_response(sock))) for sock in socks} == {32}
        stats = one.get("/scripted/stats")[2]
    assert stats["chunks"] == 64 * 32
    assert stats["joined_chunks"] < 64
    assert stats["write_lag_p50_ns"] < LATE_NS / 4


def test_a_client_that_does_not_read_gets_all_of_it_later():
    with running() as one, one.connect() as slow:
        slow.sendall(request(f"tpot_ms=0&text={'x' * 8000}", max_tokens=600))
        time.sleep(0.3)
        assert len(texts(read_response(slow))) == 600
        (row,) = one.get("/scripted/log")[2]
    assert row["blocked_chunks"] > 0
    assert row["tokens"] == 600


# HTTP


def test_a_connection_serves_one_request_after_the_other(server):
    with server.connect() as sock:
        for _ in range(2):
            sock.sendall(request("text=again"))
            read_response(sock)
    first, second = server.log("text=again")
    assert first["connection"] == second["connection"]


def test_requests_may_come_together(server):
    with server.connect() as sock:
        sock.sendall(request("text=a") + request("text=b", headers="Connection: close\r\n"))
        assert texts(read_to_end(sock)) == ["a"] * 8 + ["b"] * 8
    (first,), (second,) = server.log("text=a"), server.log("text=b")
    assert first["received_ns"] <= second["received_ns"] < first["finished_ns"] <= second["start_ns"]


def test_a_request_may_come_in_pieces(server):
    data = request("text=pieces")
    with server.connect() as sock:
        for piece in (data[:30], data[30:-10], data[-10:]):
            time.sleep(0.01)
            last_ns = time.monotonic_ns()
            sock.sendall(piece)
        read_response(sock)
    (row,) = server.log("text=pieces")
    assert row["received_ns"] >= last_ns


def test_a_chunked_request_is_read(server):
    data = json.dumps(completion("text=chunks", stream=True)).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(head + b"5\r\n" + data[:5] + b"\r\n%x\r\n" % (len(data) - 5) + data[5:] + b"\r\n0\r\n\r\n")
        assert texts(read_response(sock)) == ["chunks"] * 8


def test_connection_close_is_honoured(server):
    with server.connect() as sock:
        sock.sendall(request(headers="Connection: close\r\n"))
        assert b"\r\nConnection: close\r\n" in read_response(sock)
        assert sock.recv(1) == b""


def test_what_is_no_http_is_refused(server):
    with server.connect() as sock:
        sock.sendall(b"hello there\r\n\r\n")
        assert read_response(sock).startswith(b"HTTP/1.1 400 ")


def test_models_health_and_unknown_paths(server):
    assert [one["id"] for one in server.get("/v1/models")[2]["data"]] == ["scripted", "truth"]
    assert server.get("/health")[0] == 200
    status, _, body = server.get("/nothing")
    assert (status, "no such path" in body["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"settings": "speed=3"}, "unknown setting 'speed'"),
        ({"settings": "tpot_ms=fast"}, "no float"),
        ({"settings": "trap=door"}, "unknown trap"),
        ({"settings": "usage=some"}, "none of never"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_a_request_that_makes_no_script_is_told_why(server, body, word):
    status, _, answer = server.post(**body)
    assert status == 400
    assert word in answer["error"]["message"]


def test_the_api_key_is_wanted():
    with running("--api-key", "secret") as one:
        assert one.post()[0] == one.get("/v1/models")[0] == 401
        assert one.post(headers={"Authorization": "Bearer secret"})[0] == 200


def test_another_model_is_not_found():
    with running("--only-model", "scripted") as one:
        assert one.post()[0] == 200
        status, _, body = one.get("/v1/completions", "POST", json.dumps({"model": "x", "prompt": "a"}))
    assert (status, body["error"]["message"]) == (404, "The model `x` does not exist.")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_tls(tmp_path):
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*made, "-out", files[0], "-keyout", files[1], "-days", "1", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(cafile=files[0])
    context.check_hostname = False
    with running("--tls", *files) as one, one.connect() as plain, context.wrap_socket(plain) as sock:
        sock.sendall(request())
        assert len(texts(read_response(sock))) == 8


# Answers


def test_a_whole_answer_comes_when_its_last_token_would(server):
    started = time.monotonic()
    _, _, answer = server.post("tpot_ms=10")
    assert time.monotonic() - started >= 0.080
    assert answer["choices"][0]["text"] == " the" * 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("settings", "options", "each", "last"),
    [
        ("", None, False, False),
        ("", {"include_usage": True}, True, True),
        ("", {"continuous_usage_stats": True}, True, False),
        ("usage=last", {"include_usage": True, "continuous_usage_stats": True}, False, True),
        ("usage=last", None, False, False),
        ("usage=last&usage_unasked=1", None, False, True),
        ("usage=never", {"include_usage": True}, False, False),
        ("text=u&trap=usage-each", None, True, True),
    ],
)
def test_usage_is_sent_as_asked(server, settings, options, each, last):
    said = events(server.raw(settings, stream_options=options))
    assert ["usage" in event for event in said[:8]] == [each] * 8
    assert ["usage" in event for event in said[8:]] == [True] * last


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ({"prompt": "one two three"}, 3),
        ({"prompt": [7, 8, 9, 10]}, 4),
        ({"prompt": ["one two", "three"]}, 3),
        ({"messages": [{"role": "user", "content": "one two"}]}, 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]}, 2),
    ],
)
def test_the_prompt_is_counted(server, prompt, tokens):
    path = "/v1/chat/completions" if "messages" in prompt else "/v1/completions"
    assert server.post(path=path, **prompt)[2]["usage"]["prompt_tokens"] == tokens


def test_a_chat_begins_with_the_role_halfway_to_the_first_token(server):
    with server.connect() as sock:
        started = time.monotonic()
        sock.sendall(request("ttft_ms=200", "/v1/chat/completions", messages=[]))
        while b"assistant" not in sock.recv(4096):
            pass
        assert 0.1 <= time.monotonic() - started < 0.19


def test_less_may_come_than_was_asked(server):
    said = events(server.raw("output_tokens=3"))
    assert [event["choices"][0]["finish_reason"] for event in said] == [None, None, "stop"]


def test_options_hold_for_every_request_and_the_model_name_before_them():
    with running("--trap", "several-tokens", "--text", "a") as one:
        assert texts(one.raw()) == ["aaaa", "aaaa"]
        assert texts(one.raw("tokens_per_chunk=8")) == ["a" * 8]
        assert texts(one.raw("trap=none")) == ["a"] * 8


# Traps


def ended(server, trap):
    return [(row["ended"], row["tokens"]) for row in server.log(f"trap={trap}")]


WHOLE = [
    "role-only", "several-tokens", "joined-events", "empty-chunks", "empty-text-tokens", "comments", "crlf",
    "split-reads", "split-utf8", "usage-each", "no-usage", "wrong-usage", "cached", "stall", "done-late",
    "slow-headers", "eof-body", "trailers", "chunk-extension", "keepalive-close", "close-idle",
]  # fmt: skip


@pytest.mark.parametrize("trap", WHOLE)
def test_these_traps_are_good_answers(server, trap):
    data = server.raw(f"trap={trap}", stream_options={})
    assert sum(len(text.split()) for text in texts(data)) == 8 or trap == "empty-text-tokens"
    assert b"data: [DONE]" in data
    assert ended(server, trap) == [("whole", 8)]


@pytest.mark.parametrize(
    ("trap", "how", "terminated"),
    [("cut-clean", "cut", True), ("cut-close", "cut", False), ("cut-eof", "cut", False), ("reset", "reset", False),
     ("error-event", "error", True), ("early-end", "stopped", True), ("bad-chunking", "malformed", False)],
)  # fmt: skip
def test_these_traps_stop_in_the_middle(server, trap, how, terminated):
    data = server.raw(f"trap={trap}")
    assert len(texts(data)) == 4
    assert data.endswith(b"0\r\n\r\n") == terminated
    assert ended(server, trap) == [(how, 4)]


def test_a_reset_is_one(server):
    with server.connect() as sock:
        sock.sendall(request("trap=reset&ttft_ms=11"))
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)


@pytest.mark.parametrize(
    ("trap", "word"),
    [
        ("comments", b"\n: ping\n\n"),
        ("crlf", b"data: [DONE]\r\n\r\n"),
        ("split-utf8", "été".encode()),
        ("garbage", b"data: {this is not JSON"),
        ("html", b"Content-Type: text/html"),
        ("json-body", b"Content-Type: application/json"),
        ("error-event", b'data: {"error":{"message":"scripted failure","code":500}}'),
        ("chunk-extension", b";ext=1\r\n"),
        ("bad-chunking", b"\r\nzz\r\n"),
        ("wrong-usage", b'"completion_tokens":24,'),
        ("cached", b'"cached_tokens":2}'),
    ],
)
def test_what_is_on_the_wire(server, trap, word):
    usage = {"stream_options": {"include_usage": True}}
    with server.connect() as sock:
        sock.sendall(request(f"trap={trap}&ttft_ms=13", headers="Connection: close\r\n", **usage))
        assert word in read_to_end(sock)


@pytest.mark.parametrize(("trap", "key"), [("reasoning", "reasoning_content"), ("reasoning-alt", "reasoning")])
def test_reasoning_is_the_first_half(server, trap, key):
    said = events(server.raw(f"trap={trap}", "/v1/chat/completions", messages=[]))
    assert [key in event["choices"][0]["delta"] for event in said] == [False] + [True] * 4 + [False] * 4


def test_a_tool_call_has_no_content(server):
    said = events(server.raw("trap=tool-call", "/v1/chat/completions", messages=[]))[1:]
    assert [event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for event in said] == [" the"] * 8


def test_no_done_is_whole_but_for_the_word(server):
    data = server.raw("trap=no-done")
    assert events(data)[-1]["choices"][0]["finish_reason"] == "length"
    assert b"[DONE]" not in data


def test_an_event_in_pieces_counts_when_its_last_one_is_written(server):
    with server.connect() as sock:
        sock.sendall(request("trap=split-reads&ttft_ms=300&tpot_ms=200", max_tokens=1))
        while b"data: " not in sock.recv(4096):
            pass
        seen_ns = time.monotonic_ns()
        read_response(sock)
    (row,) = server.log("trap=split-reads&ttft_ms=300&tpot_ms=200")
    assert row["token_ns"][0] - seen_ns > 80_000_000
    assert row["token_ns"][0] >= row["first_token_due_ns"]


def test_a_stall_is_in_the_middle(server):
    server.raw("trap=stall&stall_ms=150")
    (row,) = server.log("trap=stall&stall_ms=150")
    gaps = [b - a for a, b in zip(row["token_ns"], row["token_ns"][1:], strict=False)]
    assert gaps.index(max(gaps)) == 3
    assert max(gaps) > 140_000_000


def test_slow_headers_come_late(server):
    with server.connect() as sock:
        started = time.monotonic()
        sock.sendall(request("trap=slow-headers&delay_ms=100"))
        sock.recv(1)
        assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize(("trap", "status"), [("rate-limited", 429), ("server-error", 500)])
def test_the_first_requests_are_refused(server, trap, status):
    got = [server.post(f"trap={trap}&times=2", stream=True, max_tokens=1)[0] for _ in range(2)]
    assert got == [status, status]
    assert server.raw(f"trap={trap}&times=2").startswith(b"HTTP/1.1 200 ")


def test_a_refusal_says_when_to_come_back(server):
    assert server.post("trap=rate-limited", stream=True)[1]["Retry-After"] == "1"


@pytest.mark.parametrize(("trap", "seen"), [("hang", 0), ("hang-middle", 4)])
def test_silence(server, trap, seen):
    pieces = []
    with server.connect() as sock:
        sock.settimeout(0.2)
        sock.sendall(request(f"trap={trap}&ttft_ms=14"))
        with pytest.raises(TimeoutError):
            pieces.extend(iter(lambda: sock.recv(4096), b""))
    assert len(texts(b"".join(pieces))) == seen
    time.sleep(0.05)
    assert [row["ended"] for row in server.log(f"trap={trap}&ttft_ms=14")] == ["client_gone"]


def test_an_endless_body_goes_on_at_its_speed(server):
    with server.connect() as sock:
        sock.sendall(request("trap=endless&tpot_ms=1", max_tokens=1))
        data, deadline = b"", time.monotonic() + 0.4
        while time.monotonic() < deadline:
            data += sock.recv(65536)
    assert 200 < len(texts(data)) <= 400


def test_an_idle_connection_is_closed_without_a_word(server):
    with server.connect() as sock:
        sock.sendall(request("trap=close-idle&ttft_ms=15"))
        assert b"Connection: close" not in read_response(sock)
        assert sock.recv(1) == b""


def test_a_joined_send_has_two_tokens(server):
    server.raw("trap=joined-events&ttft_ms=16")
    (row,) = server.log("trap=joined-events&ttft_ms=16")
    assert row["chunk_tokens"] == [2, 2, 2, 2]


def test_traps_can_be_put_together(server):
    data = server.raw("trap=comments,crlf")
    assert b": ping\r\n\r\n" in data


def test_every_trap_is_listed_with_nothing_but_the_standard_library():
    told = subprocess.run([sys.executable, "-S", "-E", str(SERVER), "--list-traps"], capture_output=True, check=True)
    assert list(json.loads(told.stdout)) == list(TRAPS)
