import json
import re
import time
from dataclasses import replace

import pytest

from llmopt.bench import load
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.hints import known_models, remedy
from llmopt.bench.runner import Traffic, enough, measure, rate_of, tokens_record, told_with_answers
from llmopt.bench.target import Target
from llmopt.core.domain import Workload
from llmopt.core.errors import ServerError
from unit.make import closed_loop, failed, ns

SOURCE = "some words that are sent as they are, again and again, until there are enough of them " * 9


def run(target, requests=16, warmup=0, tokenizer=None, how=None, **options):
    how = how or {}
    workload = Workload(
        **{"input_tokens": 16, "output_tokens": 8, "concurrency": 4, "requests": requests, "warmup_requests": warmup}
        | options
    )
    return measure(target, workload, Traffic(salt="salt", source=SOURCE, tokenizer=tokenizer), **how)


def codes(result):
    return {d.code for d in result.verdict.reasons}


def test_a_run_has_metrics_intervals_and_a_verdict(scripted):
    result = run(scripted("--ttft-ms", "20", "--tpot-ms", "5"), requests=64)
    assert result.metrics["ttft_s"]["p50"] == pytest.approx(0.020, abs=0.015)
    assert result.metrics["tpot_s"]["p50"] == pytest.approx(0.005, abs=0.005)
    assert result.metrics["error_rate"] == 0
    assert result.metrics["output_tps"] > 0
    assert result.metrics["peak_rss_bytes"] > 1 << 20
    assert result.metrics["load_s"] > 0
    assert result.intervals["output_tps"]["over"] == "blocks"
    assert not {"errors", "output_length", "not_streamed", "too_few_samples"} & codes(result)


def test_a_target_of_unknown_process_has_no_memory(scripted):
    result = run(Target(base_url=scripted().base_url, model="scripted"), requests=4)
    assert result.metrics["peak_rss_bytes"] is None
    assert result.metrics["load_s"] is None


def test_warm_up_requests_are_sent_and_not_counted(scripted, truth):
    target = scripted()
    assert len(run(target, requests=4, warmup=3).traces) == 4
    assert len(truth(target)) == 7


def test_few_requests_are_too_few_samples(scripted):
    result = run(scripted(), requests=16)
    assert "too_few_samples" in codes(result)
    assert result.metrics["ttft_s"]["p95"] is None


def test_answers_that_stop_early_are_doubted(scripted):
    assert "output_length" in codes(run(scripted("--output-tokens", "3")))


def test_another_prompt_length_is_doubted(scripted, demo_tokenizer):
    assert "token_counts" in codes(run(scripted("--prompt-tokens", "20"), tokenizer=demo_tokenizer))
    assert "token_counts" not in codes(run(scripted("--prompt-tokens", "16"), tokenizer=demo_tokenizer))


def test_an_answer_in_one_chunk_is_not_streamed(scripted):
    result = run(scripted("--tokens-per-chunk", "100"))
    assert "not_streamed" in codes(result)
    assert result.metrics["tpot_s"] is None


def test_without_usage_in_each_chunk_the_count_at_the_end_proves_one_token_a_read(scripted):
    result = run(scripted("--no-usage-per-chunk", "--tpot-ms", "10"))
    assert result.metrics["itl_s"]["p50"] == pytest.approx(0.010, abs=0.010)


def test_without_usage_in_each_chunk_of_several_tokens_tpot_stands_and_itl_is_unknown(scripted):
    result = run(scripted("--no-usage-per-chunk", "--tpot-ms", "10", "--tokens-per-chunk", "2"))
    assert result.metrics["itl_s"] is None
    assert result.metrics["tpot_s"]["p50"] == pytest.approx(0.010, abs=0.010)


@pytest.mark.parametrize(("fault", "word"), [("error", "scripted error"), ("cut", "cut")])
def test_a_run_without_one_success_is_an_error(scripted, fault, word):
    with pytest.raises(ServerError, match=f"all 16 requests .* failed: .*{word}") as caught:
        run(scripted("--fault", fault))
    assert caught.value.hint


def test_each_adapter_is_warmed_up(scripted, truth):
    target = scripted()
    names = tuple(f"scripted?text=auto&ttft_ms={n}" for n in range(5))
    run(target, requests=4, warmup=1, adapters=names)
    assert len(truth(target)) == 4 + 5


def test_a_warm_up_without_one_success_ends_the_run(scripted):
    with pytest.raises(ServerError, match="all 2 requests"):
        run(scripted("--fault", "error"), warmup=2)


def test_no_server_is_an_error():
    with pytest.raises(ServerError, match=r"no connection to 127\.0\.0\.1:9"):
        run(Target(base_url="http://127.0.0.1:9/v1", model="m"), requests=2)


# --- what the run knows about itself --------------------------------------------------------------------------------


@pytest.fixture
def target(server):
    return Target(base_url=server, model="scripted?ttft_ms=5&tpot_ms=1", usage_per_chunk=True)


def test_the_client_tells_about_itself(target):
    client = run(target, requests=32).client
    assert client["stamps"] == "kernel"
    assert client["lag_s"]["n"] == client["reads"] - client["user_stamped_reads"]
    assert 0 <= client["lateness_s"]["p50"] <= client["lateness_s"]["p90"] <= client["lateness_s"]["max"]
    assert client["lateness_s"]["p99"] is None
    assert (client["asked_rate"], client["workers"]) == (None, 1)
    assert client["achieved_rate"] > 0
    assert client["ceiling"]["share"] > 0


def test_a_run_is_as_doubtful_as_its_client_that_waited_most(target, monkeypatch):
    shares = iter([0.5, 0.0])
    monkeypatch.setattr(load, "waited_share", lambda _: next(shares))
    result = run(target, requests=8, how={"workers": 2})
    assert result.client["waited_share"] == 0.5
    assert any("waited for a processor in 50%" in doubt.message for doubt in result.verdict.reasons)


def test_an_open_loop_tells_the_rate_that_was_asked_and_what_became_of_it(target):
    client = run(target, requests=50, load="open", rate=100.0).client
    assert client["asked_rate"] == pytest.approx(100, rel=1e-3)
    assert client["achieved_rate"] == pytest.approx(100, rel=0.05)


def test_a_rate_is_of_the_gaps():
    assert rate_of([0, ns(0.5), ns(1.0)]) == pytest.approx(2.0)
    assert rate_of([5]) is None
    assert rate_of([5, 5]) is None


def test_counts_of_tokens_are_all_kept(target, demo_tokenizer):
    tokens = run(target, requests=4, tokenizer=demo_tokenizer).tokens
    assert (tokens["requested"], tokens["server"], tokens["source"], tokens["prompts"]) == (32, 32, "server", "exact")
    assert tokens["counted"] > 0


def test_prompts_without_a_tokenizer_are_of_estimated_length(target):
    assert run(target, requests=4).tokens["prompts"] == "estimated from words"


def test_a_count_that_is_ours_is_called_an_estimate():
    ours = closed_loop(4, 4, output_tokens=9, counted_tokens=9, tokens_estimated=True)
    assert tokens_record(ours) == {"requested": 40, "server": None, "counted": 36, "source": "estimated"}
    assert tokens_record([failed()])["source"] is None


# --- ends of a run --------------------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_keeps_what_it_has(target):
    def interrupt(now):
        if now.finished > 20:
            raise KeyboardInterrupt

    result = run(target, requests=2000, how={"progress": interrupt})
    assert result.stopped == "interrupted"
    assert "ended_early" in codes(result)
    assert result.metrics["requests_ok"] > 20


def test_an_interrupt_before_the_first_answer_is_one(server):
    def interrupt(now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Target(base_url=server, model="scripted?ttft_ms=900"), how={"progress": interrupt})


@pytest.mark.parametrize("warmup", [None, 4])
def test_the_end_of_the_time_is_seen_in_the_warm_up(server, warmup):
    end = time.monotonic() + 0.5

    def out_of_time(now):
        if time.monotonic() > end:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(Target(base_url=server, model="scripted?ttft_ms=8000"), warmup=warmup, how={"stop_when": out_of_time})
    assert time.monotonic() - end < 4


def test_a_warm_up_that_has_been_enough_leads_to_a_run_that_is_too(target):
    with pytest.raises(ServerError):
        run(replace(target, model="scripted?ttft_ms=8000"), warmup=4, how={"stop_when": lambda now: True})


def test_a_run_by_time_ends_by_time(target):
    result = run(target, requests=None, duration_s=0.5, warmup=2)
    assert 0.4 < result.client["seconds"] < 1.5
    assert result.metrics["requests_failed"] == 0
    assert result.metrics["requests_ok"] > 20


def test_until_an_interval_is_narrow(target):
    result = run(target, requests=None, until="e2e_p50±50%", warmup=2, concurrency=8)
    assert result.metrics["requests_failed"] == 0
    assert result.client["seconds"] < 5
    assert "until_not_reached" not in codes(result)


@pytest.mark.parametrize(("width", "doubted"), [("90%", False), ("0.0001%", True)])
def test_a_run_that_ended_by_its_number_is_judged_by_the_interval_that_it_has(target, width, doubted):
    result = run(target, requests=100, until=f"e2e_p50±{width}", concurrency=8)
    assert ("until_not_reached" in codes(result)) is doubted


def test_an_interval_is_looked_at_once_there_are_enough_requests():
    narrow = enough(Workload(until="ttft_p50±5%"))
    assert not narrow(closed_loop(60))
    assert narrow(closed_loop(400))
    assert enough(Workload()) is None


def test_a_warm_up_of_its_own_ends_when_rounds_take_the_same_time(server, truth):
    result = run(Target(base_url=server, model="scripted?ttft_ms=30&text=auto"), requests=4, warmup=None, concurrency=2)
    assert len(result.traces) == 4
    sent = [row for row in truth(Target(base_url=server, model="")) if row["model"].endswith("text=auto")]
    assert 4 + 2 * 2 <= len(sent) <= 4 + 4 * 2


# --- what to do about a failure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("http_401", "LLMOPT_API_KEY"),
        ("http_429", "--retries"),
        ("bad_stream", "OpenAI-compatible"),
        ("timeout", "--request-timeout"),
        ("stalled", "--stall-timeout"),
        ("refused", "is the server running"),
        ("http_500", "log"),
    ],
)
def test_every_failure_has_a_next_step(target, kind, word):
    assert word in remedy(kind, target, Endpoint.of(target.base_url, "chat"))


@pytest.mark.parametrize(("endpoint", "other"), [("chat", "completions"), ("completions", "chat")])
def test_a_wrong_path_names_the_other_endpoint(endpoint, other):
    nowhere = Target(base_url="http://127.0.0.1:9/v1", model="m")
    assert f"--endpoint {other} " in remedy("http_404", nowhere, Endpoint.of(nowhere.base_url, endpoint))


def test_an_unknown_model_names_those_of_the_server(server):
    target = Target(base_url=server, model="nope")
    assert "it lists: scripted, truth" in remedy("http_404", target, Endpoint.of(server, "chat"))


def test_an_unknown_adapter_names_itself_and_what_the_server_has(server):
    target = Target(base_url=server, model="scripted")
    words = remedy("http_404", target, Endpoint.of(server, "chat"), ("truth", "style"))
    assert words == "the server has no adapter 'style'; it lists: scripted, truth"


def test_a_model_far_down_the_list_is_not_said_to_be_lacking(answering):
    body = json.dumps({"data": [{"id": f"m{n}"} for n in range(20)]}).encode()
    url, _ = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert "is the path right" in remedy("http_404", Target(base_url=url, model="m19"), Endpoint.of(url, "chat"))
    assert "m7 and 12 more" in remedy("http_404", Target(base_url=url, model="x"), Endpoint.of(url, "chat"))


def models_of(base_url):
    return known_models(Target(base_url=base_url, model="m"), Endpoint.of(base_url, "chat"))


@pytest.mark.parametrize(
    "reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n[]", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]
)
def test_a_server_that_lists_no_models(answering, reply):
    assert models_of(answering(reply)[0]) == ()


def test_an_address_with_a_login_is_no_crash():
    assert models_of("http://user:secret@localhost/v1") == ()


def test_a_salt_never_reaches_a_header_as_it_is(scripted, truth):
    target = scripted()
    workload = Workload(output_tokens=2, concurrency=1, requests=2, warmup_requests=0)
    result = measure(target, workload, Traffic(salt="a\nX-Evil: 1", source=SOURCE, tokenizer=None))
    assert [t.error for t in result.traces] == [None, None]
    assert all(re.fullmatch(r"llmopt-[0-9a-f]{8}-\d", row["request_id"]) for row in truth(target))


def test_a_server_that_takes_no_post_is_no_openai_server():
    endpoint = Endpoint.of("http://127.0.0.1:9/v1", "completions")
    words = remedy("http_501", Target(base_url="http://127.0.0.1:9/v1", model="m"), endpoint)
    assert "OpenAI-compatible" in words


# --- what the server tells with its answers -------------------------------------------------------------------------


def test_times_of_all_answers_are_a_distribution():
    traces = closed_loop(64, 4, server_prefill_s=0.02, server_decode_s=0.5)
    found = told_with_answers([*traces, failed()])
    assert (found["server_prefill_s"]["p95"], found["server_decode_s"]["mean"]) == (0.02, 0.5)


def test_times_of_some_answers_say_nothing_of_all():
    assert told_with_answers([*closed_loop(8, 4, server_prefill_s=0.02), *closed_loop(8, 4)]) == {}
