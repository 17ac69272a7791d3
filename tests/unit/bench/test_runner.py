import pytest

from llmopt.bench.runner import Target, check_workload, measure
from llmopt.core.domain import Workload
from llmopt.core.errors import ServerError, UsageError

SOURCE = "some words that are sent as they are, again and again, until there are enough of them " * 9


def run(target, requests=16, warmup=0, tokenizer=None, **options):
    workload = Workload(
        **{"input_tokens": 16, "output_tokens": 8, "concurrency": 4, "requests": requests, "warmup_requests": warmup}
        | options
    )
    return measure(target, workload, salt="salt", source=SOURCE, tokenizer=tokenizer)


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


def test_without_usage_in_each_chunk_tpot_stands_and_itl_is_unknown(scripted):
    result = run(scripted("--no-usage-per-chunk", "--tpot-ms", "10"))
    assert result.metrics["itl_s"] is None
    assert result.metrics["tpot_s"]["p50"] == pytest.approx(0.010, abs=0.010)


@pytest.mark.parametrize(("fault", "word"), [("error", "scripted error"), ("cut", "cut")])
def test_a_run_without_one_success_is_an_error(scripted, fault, word):
    with pytest.raises(ServerError, match=f"all 16 requests .* failed: .*{word}") as caught:
        run(scripted("--fault", fault))
    assert caught.value.hint


def test_a_warm_up_without_one_success_ends_the_run(scripted):
    with pytest.raises(ServerError, match="all 2 requests"):
        run(scripted("--fault", "error"), warmup=2)


def test_no_server_is_an_error():
    with pytest.raises(ServerError, match="connection"):
        run(Target(base_url="http://127.0.0.1:9/v1", model="m"), requests=2)


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "concurrency", "requests"])
def test_numbers_that_make_no_run(name):
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        check_workload(Workload(**{name: 0}))


def test_a_negative_warm_up_makes_no_run():
    with pytest.raises(UsageError, match="--warmup-requests"):
        check_workload(Workload(warmup_requests=-1))


def test_a_timeout_of_no_time_makes_no_run():
    with pytest.raises(UsageError, match="--request-timeout"):
        check_workload(Workload(request_timeout_s=0))
