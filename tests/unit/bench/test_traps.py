"""Every trap of the scripted server, through the real client: one run per endpoint asks for all of them at once."""

import pytest

from llmopt.core.metrics import METRICS
from llmopt.serve.shims.scripted_traps import TRAPS
from unit.bench.playing import new_id, run, schedule, truth

TOKENS = 8
WHOLE, HALF = (None, TOKENS), (None, TOKENS // 2)
# What comes of each: (kind of error, output tokens).
EXPECTED = {
    **dict.fromkeys(TRAPS, WHOLE),
    "early-end": HALF,
    "wrong-usage": (None, 3 * TOKENS),
    "hang": ("timeout", None),
    "hang-middle": ("stalled", TOKENS // 2),
    **dict.fromkeys(("cut-clean", "cut-close", "cut-eof"), ("cut", TOKENS // 2)),
    "reset": ("reset", TOKENS // 2),
    "error-event": ("error_event", TOKENS // 2),
    "rate-limited": ("http_429", None),
    "server-error": ("http_500", None),
    **dict.fromkeys(("html", "json-body"), ("bad_stream", None)),
    **dict.fromkeys(("garbage", "bad-chunking"), ("bad_stream", TOKENS // 2)),
}
ENDPOINTS = ["completions", "chat"]
LATE_NS = 50_000_000  # of a busy machine


@pytest.fixture(scope="module")
def played(server):
    """(trace by trap, what the server did) of each endpoint; six at a time, so that connections are used again."""
    found = {}
    for endpoint in ENDPOINTS:
        name = new_id()
        plan = schedule(
            [f"scripted?trap={trap}" for trap in TRAPS], tokens=TOKENS, users=6, request_timeout_s=1.5, stall_timeout_s=0.8,
        )  # fmt: skip
        result = run(server, plan, endpoint=endpoint, request_id=name, count=lambda text: len(text.split()))
        rows = truth(server, name)
        found[endpoint] = dict(zip(TRAPS, zip(result.traces, rows, strict=True), strict=True))
    return found


@pytest.fixture(params=ENDPOINTS)
def of(request, played):
    """The trace of a trap."""
    return lambda trap: played[request.param][trap][0]


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap(of, trap):
    found, (kind, tokens) = of(trap), EXPECTED[trap]
    if trap == "endless":
        assert found.error_kind == "timeout"
        assert found.output_tokens > 50
    else:
        assert (found.error_kind, found.output_tokens) == (kind, tokens), found.error


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("trap", [trap for trap in TRAPS if EXPECTED[trap][0] is None and trap != "endless"])
def test_the_first_and_last_token_are_those_of_the_server(played, trap, endpoint):
    """A chunk that is no token (a role, a comment, no text) would be before the first, [DONE] after the last."""
    found, row = played[endpoint][trap]
    assert 0 <= found.first_token_ns - row["token_ns"][0] < LATE_NS
    assert 0 <= found.last_token_ns - row["token_ns"][-1] < LATE_NS


@pytest.mark.parametrize(
    ("trap", "finish"), [("none", "length"), ("early-end", "stop"), ("no-done", "length"), ("cut-clean", None)]
)
def test_the_finish_reason(of, trap, finish):
    assert of(trap).finish_reason == finish


@pytest.mark.parametrize("trap", ["none", "comments", "empty-chunks", "empty-text-tokens", "split-reads", "role-only"])
def test_with_usage_in_each_chunk_every_chunks_tokens_are_known(of, trap):
    assert sum(of(trap).chunk_tokens) == TOKENS


def test_several_tokens_of_a_chunk_are_one_chunk(of):
    assert max(of("several-tokens").chunk_tokens) >= 4
    assert max(of("joined-events").chunk_tokens) >= 2


def test_usage_at_the_end_that_is_one_token_a_read_tells_each_chunks(of):
    assert of("usage-last").chunk_tokens == (1,) * TOKENS
    assert not of("usage-last").tokens_estimated


def test_without_usage_the_tokens_are_ours_and_marked(of):
    assert (of("no-usage").output_tokens, of("no-usage").tokens_estimated) == (TOKENS, True)


def test_what_the_server_counts_and_what_we_count_are_both_kept(of):
    assert (of("wrong-usage").output_tokens, of("wrong-usage").counted_tokens) == (3 * TOKENS, TOKENS)


def test_cached_prompt_tokens(of):
    assert of("cached").cached_tokens == of("cached").prompt_tokens - 1
    assert of("none").cached_tokens == 0


@pytest.mark.parametrize("trap", ["reasoning", "reasoning-alt"])
def test_reasoning_is_a_token_and_the_visible_answer_comes_later(played, trap):
    found, row = played["chat"][trap]
    assert found.reasoning
    assert found.first_token_ns < row["token_ns"][TOKENS // 2] <= found.first_visible_ns
    assert METRICS["ttfv"].of_request(found) > METRICS["ttft"].of_request(found)
    assert METRICS["ttfv"].of_request(played["chat"]["none"][0]) is None


def test_a_pause_is_the_largest_gap(of):
    assert 0.3 <= METRICS["max_stall"].of_request(of("stall")) < 0.5
    assert METRICS["max_stall"].of_request(of("none")) < 0.2


def test_a_late_done_is_after_the_last_token(of):
    found = of("done-late")
    assert found.closed_ns - found.last_token_ns >= 190_000_000


def test_late_headers_are_in_the_time_to_the_first_token(of):
    assert METRICS["ttft"].of_request(of("slow-headers")) >= 0.16


@pytest.mark.parametrize(("trap", "most_s"), [("hang", 2.0), ("hang-middle", 1.4), ("endless", 2.0)])
def test_every_wait_has_its_bound(of, trap, most_s):
    assert (of(trap).closed_ns - of(trap).sent_ns) / 1e9 < most_s


def test_what_the_server_said_is_in_the_error(of):
    assert of("rate-limited").error == "http_429: rate limit reached (Retry-After: 1)"
    assert of("server-error").error == "http_500: scripted error"
    assert of("error-event").error == "error_event: scripted failure"


def test_how_a_stream_was_cut_is_in_the_error(of):
    assert of("cut-clean").error.endswith("its HTTP body ended cleanly")
    assert of("cut-close").error.endswith("the connection was closed")


@pytest.mark.parametrize("trap", ["cut-clean", "error-event", "trailers", "chunk-extension", "html", "rate-limited"])
def test_after_an_answer_that_has_ended_its_connection_is_used_again(server, trap):
    result = run(server, schedule([f"scripted?trap={trap}", "scripted"]))
    assert result.traces[1].ok
    assert result.connections == 1


@pytest.mark.parametrize("trap", ["cut-close", "reset", "bad-chunking", "eof-body", "keepalive-close", "hang"])
def test_a_connection_that_is_over_is_left(server, trap):
    result = run(server, schedule([f"scripted?trap={trap}", "scripted"], request_timeout_s=0.5))
    assert result.traces[1].ok
    assert result.connections == 2


def test_servers_that_close_idle_connections_cost_no_request(server):
    result = run(server, schedule(["scripted?trap=close-idle&ttft_ms=1&tpot_ms=0.1"] * 30, users=3))
    assert [t.error for t in result.traces] == [None] * 30
    lost = [a for t in result.traces for a in t.attempts]
    assert {a.error.partition(":")[0] for a in lost} <= {"reset"}
    assert all(a.closed_ns - a.sent_ns < 10_000_000 for a in lost)
