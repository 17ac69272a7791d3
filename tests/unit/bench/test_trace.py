"""From raw exchanges to traces: clocks, what is a failure, and what is kept of it."""

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.clock import clock_offset
from llmopt.bench.recording import ClockOffset, Exchange, Summary
from llmopt.bench.schedule import PlannedRequest
from llmopt.bench.trace import ERROR_KINDS, Clock, Reader, read_traces

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND
TOKEN = b'data: {"choices":[{"text":"x"}]}\n\n'
LAST = b'data: {"choices":[{"text":"","finish_reason":"length"}],"usage":{"completion_tokens":1}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
PLANNED = tuple(PlannedRequest(index=n, body=b"", output_tokens=1, prompt_tokens=None) for n in range(3))


def kernel(*real_ns):
    """Raw stamps as the kernel gives them: three timespecs each, of which the first is filled."""
    return b"".join(struct.pack("6q", *divmod(ns, SECOND), 0, 0, 0, 0) for ns in real_ns)


def exchange(*reads, user=None, real=(), error=None, closed=True, sent=0, **fields):
    user = range(1, len(reads) + 1) if user is None else user
    known = {
        "index": 0, "attempt": 0, "planned_ns": 0, "due_ns": 0, "sent_ns": sent, "closed_ns": 9 * SECOND,
        "error": error, "server_closed": closed, "user_ns": array("q", user).tobytes(), "kernel": kernel(*real),
        "sizes": array("I", map(len, reads)).tobytes(), "raw": b"".join(reads),
    }  # fmt: skip
    return Exchange(**known | fields)


def reader(*offsets, **fields):
    return Reader(clock=Clock(offsets or [ClockOffset(0, EPOCH, 0)]), **fields)


def trace(*reads, **fields):
    return reader().trace(PLANNED[0], exchange(*reads, **fields))


# --- clocks -------------------------------------------------------------------------------------------------------


def test_an_offset_is_what_the_two_clocks_say():
    found, again = clock_offset(), clock_offset()
    assert 0 < found.bracket_ns < 10_000_000
    assert abs(again.offset_ns - found.offset_ns) < 10_000_000
    assert found.at_ns < again.at_ns


@given(st.lists(st.integers(-500_000, 500_000), min_size=1, max_size=6), st.data())
def test_kernel_stamps_become_monotonic_however_the_clocks_drift(drifts, data):
    """Between two readings the offset is on the line between them, outside of all it is the nearest one."""
    offsets = [ClockOffset(n * SECOND, EPOCH + drift, 100) for n, drift in enumerate(drifts)]
    at = data.draw(st.integers(0, (len(drifts) - 1) * SECOND))
    left = min(at // SECOND, len(drifts) - 1)
    right = min(left + 1, len(drifts) - 1)
    drift = drifts[left] + (drifts[right] - drifts[left]) * (at - left * SECOND) / SECOND
    (found,) = Clock(offsets).monotonic(kernel(at + EPOCH + round(drift)))
    assert abs(found - at) <= 2 + 2e-3 * max(map(abs, drifts))  # the line is read at the kernel's time, not at ours


def test_the_kernels_stamps_are_taken_and_ours_give_the_lag():
    one = reader()
    found = one.stamps(exchange(b"a", b"b", user=[5_000, 9_000], real=[EPOCH + 4_000, EPOCH + 7_500]))
    assert found == [4_000, 7_500]
    assert [list(lag) for lag in one.lags] == [[1_000, 1_500]]
    assert one.user_stamped == 0


@pytest.mark.parametrize(
    "real",
    [(), (EPOCH - 5 * SECOND, EPOCH - 5 * SECOND), (EPOCH + SECOND, EPOCH + 3 * SECOND)],
    ids=["no kernel stamps", "the clock was set back", "the clock was set forward"],
)
def test_where_the_kernel_cannot_be_believed_our_own_stamps_are(real):
    one = reader()
    assert one.stamps(exchange(b"a", b"b", user=[5_000, 9_000], real=real)) == [5_000, 9_000]
    assert (one.lags, one.user_stamped) == ([], 2)


@pytest.mark.parametrize(
    ("user", "kept"), [((100, 200), True), ((100, SECOND + 200), False), ((SECOND + 100, 2 * SECOND - 1), False)]
)
def test_a_step_of_the_clock_spoils_the_stamps_of_its_span_alone(user, kept):
    offsets = [ClockOffset(n * SECOND, EPOCH + (n > 1) * 5 * SECOND, 0) for n in range(4)]
    one = reader(*offsets)
    one.stamps(exchange(b"a", b"b", user=user, real=[EPOCH + at for at in user]))
    assert one.user_stamped == (0 if kept else 2)


def test_no_stamp_is_later_than_the_moment_when_it_was_read():
    found = reader().stamps(exchange(b"a", user=[5_000], real=[EPOCH + 5_400]))
    assert found == [5_000]


# --- timelines ----------------------------------------------------------------------------------------------------


def test_points_of_the_timeline():
    found = trace(HEAD, TOKEN, TOKEN, LAST, sent=0, user=[10, 20, 30, 40])
    assert (found.error, found.first_byte_ns, found.chunks_ns, found.closed_ns) == (None, 20, (20, 30), 9 * SECOND)


def test_lateness_is_from_the_moment_that_nothing_else_stood_in_the_way():
    one = reader()
    one.trace(PLANNED[0], exchange(HEAD + TOKEN + LAST, planned_ns=-100, due_ns=-30, sent=0))
    assert one.lateness_ns == [30]


@pytest.mark.parametrize(
    ("reads", "error"),
    [
        ((HEAD, TOKEN, LAST), None),
        ((HEAD, TOKEN, b"data: [DONE]\n\n"), None),
        ((HEAD, TOKEN), "cut: no finish_reason and no [DONE], its HTTP body ended cleanly"),
        ((HEAD, b"data: [DONE]\n\n"), "bad_stream: no token in the stream"),
        ((HEAD, b"data: {\n\n"), "bad_stream: "),
        ((HEAD, TOKEN, b'data: {"error": "no memory"}\n\n', LAST), "error_event: no memory"),
        ((b"HTTP/1.1 200 OK\r\nX-Half: ",), "reset: the connection ended inside the head of the answer"),
        ((b"SSH-2.0\r\n\r\n",), "bad_stream: no HTTP response"),
        ((b"HTTP/1.1 503 Busy\r\n\r\n<h1>later</h1>",), "http_503: <h1>later</h1>"),
        ((b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n{\"error\": \"slow\"}",), "http_429: slow (Retry-After: 7)"),
        ((b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",), "bad_stream: an HTML page"),
        ((b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}",), "bad_stream: one JSON document"),
        ((b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"error\": \"x\"}",), "error_event: x"),
    ],
)  # fmt: skip
def test_what_is_a_failure_and_of_which_kind(reads, error):
    found = trace(*reads).error
    assert found is None if error is None else found.startswith(error)


def test_every_kind_of_failure_is_of_the_closed_list():
    for words in ("timeout: no end", "stalled: no byte", "stopped: the run was ended"):
        assert trace(HEAD, TOKEN, error=words, closed=False).error_kind in ERROR_KINDS


def test_a_stream_that_failed_keeps_its_chunks_and_counts_its_tokens():
    found = reader(count=len).trace(PLANNED[0], exchange(HEAD, TOKEN, TOKEN, error="timeout: no end", closed=False))
    assert (len(found.chunks_ns), found.output_tokens, found.tokens_estimated) == (2, 2, True)


def test_an_error_of_the_server_says_more_than_ours():
    reads = (HEAD, TOKEN, b'data: {"error": "no memory"}\n\n')
    assert trace(*reads, error="reset: by peer").error == "error_event: no memory"


def test_the_servers_count_goes_before_ours_and_both_are_kept():
    found = reader(count=lambda _: 5).trace(PLANNED[0], exchange(HEAD, TOKEN, LAST))
    assert (found.output_tokens, found.counted_tokens, found.tokens_estimated) == (1, 5, False)


def test_attempts_are_kept_and_time_counts_from_the_first_plan_and_the_first_send():
    summary = Summary(0, 9, 0.0, 1, [], [], None)
    refused = exchange(b"HTTP/1.1 429 Slow\r\n\r\n", planned_ns=1, sent=2, closed_ns=3)
    again = exchange(HEAD, TOKEN, LAST, planned_ns=1, attempt=1, sent=7, user=[8, 9, 10])
    (found,) = read_traces(PLANNED, [refused, again], reader(), summary)
    assert (found.error, found.planned_ns, found.sent_ns) == (None, 1, 2)
    assert [(a.sent_ns, a.closed_ns, a.error) for a in found.attempts] == [(2, 3, "http_429: no words")]


def test_a_count_of_one_token_a_read_proves_the_chunks():
    last = LAST.replace(b'"completion_tokens":1', b'"completion_tokens":2')
    assert trace(HEAD, TOKEN, TOKEN, last).chunk_tokens == (1, 1)
    assert trace(HEAD, TOKEN, last).chunk_tokens == ()


def test_a_closed_loop_that_begins_anew_goes_on_counting():
    """Three of the run's ten requests are this client's; the second lap of its first is number 10 + 0."""
    again = [exchange(HEAD, TOKEN, LAST, index=index) for index in (0, 3, 5)]
    assert [t.index for t in read_traces(PLANNED, again, reader(total=10), None)] == [0, 10, 12]


def test_what_was_read_before_is_kept_and_added_to():
    known = {}
    assert len(read_traces(PLANNED, [exchange(HEAD, TOKEN, LAST)], reader(), None, known)) == 1
    assert len(read_traces(PLANNED, [exchange(HEAD, TOKEN, LAST, index=1)], reader(), None, known)) == 2
    assert list(known) == [0, 1]


def test_secrets_are_blotted_out_of_what_a_server_says():
    reads = (b'HTTP/1.1 401 No\r\n\r\n{"error": "bad key sk-secret"}',)
    assert reader(secrets=["sk-secret"]).trace(PLANNED[0], exchange(*reads)).error == "http_401: bad key ***"


def test_what_was_never_sent_is_a_failure():
    summary = Summary(0, 9, 0.0, 1, [], [(2, 77), (0, 5)], None)
    found = read_traces(PLANNED, [exchange(HEAD, TOKEN, LAST)], reader(), summary)
    assert [(t.index, t.error_kind, t.planned_ns, t.sent_ns) for t in found] == [
        (0, None, 0, 0),
        (2, "dropped", 77, None),
    ]
