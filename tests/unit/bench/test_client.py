"""The load client against a scripted server: timelines, load shapes, retries, connections."""

import contextlib
import socket
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from llmopt.core.errors import ServerError
from llmopt.core.metrics import METRICS
from llmopt.serve.scripted import running
from unit.bench.playing import FAST, kinds, median, new_id, planned, run, schedule, truth
from unit.make import ns

NEAR_S = 0.015


def every(seconds, count):
    """Offsets of an open loop at a constant rate."""
    return tuple(ns(seconds * n) for n in range(count))


# --- timelines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_request_is_answered_whole_and_in_order(server, endpoint):
    result = run(server, schedule(8, users=4), endpoint=endpoint)
    assert [t.index for t in result.traces] == list(range(8))
    assert kinds(result) == [None] * 8
    assert {(t.output_tokens, t.finish_reason, t.requested_output_tokens) for t in result.traces} == {(8, "length", 8)}


def test_stamps_are_in_order(server):
    for t in run(server, schedule(8, users=4)).traces:
        points = [t.planned_ns, t.sent_ns, t.first_byte_ns, t.first_token_ns, t.last_token_ns, t.closed_ns]
        assert points == sorted(points)


def test_tokens_are_stamped_when_the_server_wrote_them(server):
    name = new_id()
    result = run(server, schedule(["scripted?ttft_ms=60&tpot_ms=15"] * 32, users=8), request_id=name)
    told = zip(result.traces, truth(server, name), strict=True)
    # Where the client had to wait for a core, the kernel gave it two writes as one.
    pairs = [(t, row) for t, row in told if len(t.chunks_ns) == len(row["token_ns"])]
    assert len(pairs) >= 24
    late = sorted(ours - real for t, row in pairs for ours, real in zip(t.chunks_ns, row["token_ns"], strict=True))
    assert late[0] >= 0
    assert late[len(late) // 2] < ns(0.002)
    ttft = sorted(t.first_token_ns - t.sent_ns - (row["token_ns"][0] - row["received_ns"]) for t, row in pairs)
    assert abs(ttft[len(ttft) // 2]) < ns(0.002)


def test_latencies_are_those_of_the_script(server):
    traces = run(server, schedule(["scripted?ttft_ms=80&tpot_ms=20"] * 5)).traces
    for name, expected in (("ttft", 0.08), ("ttft_service", 0.08), ("tpot", 0.02), ("e2e", 0.08 + 7 * 0.02)):
        assert median(name, traces) == pytest.approx(expected, abs=NEAR_S)


def test_a_queue_in_the_server_is_part_of_the_latency():
    with running("--ttft-ms", "50", "--tpot-ms", "1", slots=1) as base_url:
        waits = sorted(METRICS["ttft"].of_request(t) for t in run(base_url, schedule(["m"] * 4, users=4)).traces)
    assert waits[-1] > waits[0] + 0.1


def test_the_client_knows_its_own_lag_and_lateness(server):
    result = run(server, schedule(16, users=4))
    assert len(result.lateness_s) == 16
    assert min(result.lateness_s) >= 0
    assert len(result.lags_s) == result.reads - result.user_stamped > 16 * 8 / 2
    assert 0 < result.client_cpu_s < result.seconds
    assert result.user_stamped == 0


# --- closed loops -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_requests_run_at_once_than_there_are_users(server, workers):
    traces = run(server, schedule(24, users=3), workers=workers).traces
    moments = sorted([(t.sent_ns, 1) for t in traces] + [(t.closed_ns, -1) for t in traces])
    active = [sum(step for _, step in moments[: n + 1]) for n in range(len(moments))]
    assert max(active) == 3


def test_a_closed_loop_plans_a_request_when_a_slot_is_free(server):
    first, second, third = run(server, schedule(3)).traces
    assert first.closed_ns <= second.planned_ns < first.closed_ns + ns(NEAR_S)
    assert second.closed_ns <= third.planned_ns


def test_a_duration_ends_a_closed_loop_and_awaits_what_is_under_way(server):
    result = run(server, schedule(["scripted?ttft_ms=50&tpot_ms=1"] * 100, users=2, duration_s=0.3))
    assert 4 <= len(result.traces) <= 14
    assert kinds(result) == [None] * len(result.traces)
    assert 0.3 <= result.seconds < 1.0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_loop_by_time_begins_anew_and_goes_on_counting(server, workers):
    result = run(server, schedule(4, users=2, duration_s=0.3, again=True), workers=workers)
    assert len({t.index for t in result.traces}) == len(result.traces) > 8
    assert {t.index for t in result.traces} >= set(range(8))
    assert kinds(result) == [None] * len(result.traces)


# --- open loops ---------------------------------------------------------------------------------------------------


def test_an_open_loop_sends_when_it_was_planned(server):
    traces = run(server, schedule(100, users=0, offsets_ns=every(0.01, 100))).traces
    assert [t.planned_ns - traces[0].planned_ns for t in traces] == list(every(0.01, 100))
    late = sorted(t.sent_ns - t.planned_ns for t in traces)
    assert late[0] >= 0
    assert late[50] < ns(0.003)


def test_an_open_loop_does_not_wait_for_answers(server):
    traces = run(server, schedule(["scripted?ttft_ms=300"] * 10, users=0, offsets_ns=every(0.01, 10))).traces
    assert max(t.sent_ns for t in traces) < min(t.first_token_ns for t in traces)


def test_with_a_cap_waiting_counts():
    """60 requests/s for a server of 8 slots that takes 40: the queue grows by a third of all that come."""
    with running("--ttft-ms", "60", "--tpot-ms", "20", slots=8) as base_url:
        plan = schedule(["m"] * 90, users=8, offsets_ns=every(1 / 60, 90))
        traces = run(base_url, plan).traces
    start = traces[0].planned_ns
    assert [t.planned_ns - start for t in traces] == list(plan.offsets_ns)
    last = traces[-10:]
    assert all(t.sent_ns - t.planned_ns > ns(0.3) for t in last)
    assert median("ttft", last) == pytest.approx(90 / 40 - 1.5 + 0.06, abs=0.2)
    assert median("ttft_service", last) < 0.2


def test_a_cap_is_kept(server):
    traces = run(server, schedule(40, users=3, offsets_ns=every(0.001, 40))).traces
    for t in traces:
        assert sum(o.sent_ns <= t.sent_ns < o.closed_ns for o in traces) <= 3


def test_waiting_behind_a_cap_is_no_lateness_of_the_client(server):
    result = run(server, schedule(40, users=2, offsets_ns=every(0.001, 40)))
    assert median("ttft", result.traces) > 0.05
    assert sorted(result.lateness_s)[20] < 0.003


def test_what_was_not_to_be_sent_before_the_end_is_no_failure(server):
    result = run(server, schedule(100, users=0, offsets_ns=every(0.02, 100), duration_s=0.3))
    assert kinds(result) == [None] * 15


def test_what_waits_too_long_behind_a_cap_is_dropped_and_a_failure(server):
    plan = schedule(["scripted?trap=hang"] * 3, users=1, offsets_ns=every(0.01, 3), request_timeout_s=0.4)
    result = run(server, plan)
    assert kinds(result)[0] == "timeout"
    assert "dropped" in kinds(result)
    assert len(result.traces) == 3


# --- conversations ------------------------------------------------------------------------------------------------


def test_the_next_turn_is_sent_after_the_answer_and_the_time_to_think(server):
    plan = schedule(6, first=(0, 3), follower=(1, 2, -1, 4, 5, -1), users=2, think_s=0.1)
    traces = run(server, plan).traces
    for turns in (traces[:3], traces[3:]):
        for before, after in pairwise(turns):
            assert 0 <= after.planned_ns - before.closed_ns - ns(0.1) < ns(NEAR_S)
            assert after.sent_ns >= after.planned_ns


@pytest.mark.parametrize("trap", ["cut-clean", "cut-close", "cut-eof", "reset", "error-event", "server-error"])
def test_the_turns_after_a_broken_one_are_never_sent(server, trap):
    plan = schedule([FAST, f"scripted?trap={trap}", FAST, FAST, FAST], first=(0, 4), follower=(1, 2, 3, -1, -1))
    result = run(server, plan)
    assert kinds(result)[2:] == ["dropped", "dropped", None]
    assert [t.sent_ns is None for t in result.traces] == [False, False, True, True, False]


def test_a_place_under_the_cap_is_free_while_a_conversation_thinks(server):
    plan = schedule(4, first=(0, 2), follower=(1, -1, 3, -1), users=1, think_s=0.3, offsets_ns=(0, 0))
    first, second, other, _ = run(server, plan).traces
    assert first.closed_ns <= other.sent_ns < second.sent_ns


# --- retries ------------------------------------------------------------------------------------------------------


def refused(*, times):
    """A model of its own that is refused so many times, with a Retry-After of one second."""
    return f"scripted?trap=rate-limited&times={times}&ttft_ms=5&text={new_id()}"


def test_without_being_asked_nothing_is_tried_again(server):
    (found,) = run(server, schedule([refused(times=1)])).traces
    assert (found.error_kind, found.attempts) == ("http_429", ())


def test_a_retry_waits_as_told_and_its_latency_counts_from_the_first_plan(server):
    (found,) = run(server, schedule([refused(times=1)], retries=1)).traces
    assert found.ok
    (before,) = found.attempts
    assert before.error.startswith("http_429")
    assert found.sent_ns == before.sent_ns < before.closed_ns <= found.first_byte_ns - ns(1.0)
    assert METRICS["ttft"].of_request(found) > 1.0


def test_a_place_under_the_cap_is_free_while_a_retry_waits(server):
    retried, other = run(server, schedule([refused(times=1), FAST], users=1, offsets_ns=(0, 0), retries=1)).traces
    assert retried.attempts[0].closed_ns <= other.sent_ns
    assert other.closed_ns < retried.first_byte_ns


def test_retries_are_counted_and_end(server):
    (found,) = run(server, schedule(["scripted?trap=reset&ttft_ms=1"], retries=2)).traces
    assert found.error_kind == "reset"
    assert len(found.attempts) == 2


def test_a_failure_that_is_no_hiccup_is_not_tried_again(server):
    (found,) = run(server, schedule(["scripted?trap=html"], retries=3)).traces
    assert found.attempts == ()


@pytest.mark.parametrize("wait", [b"86400", b"9" * 5000, b"soon"])
def test_no_server_makes_us_wait_longer_than_a_request_may_take(answering, wait):
    url, _ = answering(b"HTTP/1.1 503 Busy\r\nRetry-After: " + wait + b"\r\nContent-Length: 0\r\n\r\n")
    result = run(url, schedule(1, retries=1, request_timeout_s=0.3))
    assert len(result.traces[0].attempts) == 1
    assert result.seconds < 3


# --- the end of a run ---------------------------------------------------------------------------------------------


def test_when_every_request_fails_the_rest_is_not_tried(server):
    result = run(server, schedule(["scripted?trap=server-error"] * 500, users=2))
    assert result.stopped == "every request failed"
    assert 16 <= len(result.traces) < 30


def test_no_server_is_an_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"no connection to 127\.0\.0\.1:.*refused") as caught:
            run(url, schedule(1))
    assert caught.value.hint


def test_an_unknown_host_is_an_error():
    with pytest.raises(ServerError, match=r"no connection to no-such-host\.invalid:80"):
        run("http://no-such-host.invalid/v1", schedule(1))


def test_a_schedule_of_nothing_ends_at_once():
    result = run("http://127.0.0.1:9/v1", schedule(0))
    assert (result.traces, result.seconds) == ((), 0.0)


# --- odd servers --------------------------------------------------------------------------------------------------

STREAM = b'data: {"choices":[{"text":"x"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((b"HTTP/1.1 200 OK\r\n\r\n", STREAM), None),
        ((b"HTTP/1.0 200 OK\r\n\r\n", STREAM), None),
        (
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le", b"ngth: %d\r\n\r\n" % len(STREAM), STREAM),
            None,
        ),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",), "bad_stream"),
        ((b"HTTP/1.1 " + b"2" * 5000 + b"\r\n\r\n",), "bad_stream"),
        ((b"SSH-2.0-OpenSSH_9.6\r\n",), "bad_stream"),
        ((b"\x15\x03\x01\x00\x02\x02",), "bad_stream"),
        ((b"HTTP/1.1 200 OK\r\nX: ",), "reset"),
        ((), "reset"),
    ],
    ids=[
        "until FIN",
        "HTTP/1.0",
        "interim",
        "endless length",
        "endless status",
        "ssh",
        "tls",
        "half a head",
        "nothing",
    ],
)
def test_an_odd_server(answering, pieces, error):
    url, _ = answering(*pieces)
    assert kinds(run(url, schedule(1))) == [error]


def test_an_answer_before_the_request_was_read_does_not_spoil_the_next(answering):
    """The rest of the first request is still in the way on its connection."""
    url, _ = answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", linger_s=5.0)
    large = (planned(0, prompt="x" * 20_000_000), planned(1))
    result = run(url, replace(schedule(2, request_timeout_s=1.0), requests=large))
    assert kinds(result) == ["http_413", "http_413"]
    assert result.connections == 2


@pytest.fixture
def dropping():
    """Answers the first request of a connection, and drops the second after it worked on it for 50 ms."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(STREAM) + STREAM

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            if connection.recv(1 << 16):
                connection.sendall(answer)
            if connection.recv(1 << 16):
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_drops_what_it_worked_on_has_failed_and_is_not_asked_again(dropping):
    result = run(dropping, schedule(3))
    assert kinds(result) == [None, "reset", None]
    assert [t.attempts for t in result.traces] == [(), (), ()]
