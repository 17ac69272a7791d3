import pytest

from llmopt.bench.definitions import DEFINITIONS, aiperf, guidellm, vllm
from unit.make import closed_loop, failed, ns, trace

# Sent half a second late; first chunk of three tokens after 0.5 s, then one token every 0.1 s: five tokens in all.
ONE = trace(1.0, 1.1, 1.2, tokens=[3, 1, 1], sent_s=0.5, closed_ns=ns(1.5))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_definition_says_what_it_is_and_bears_any_run(name):
    words, figures = DEFINITIONS[name]
    assert "=" in words
    for traces in ([], [failed()], closed_loop(16), closed_loop(16, output_tokens=None), [trace(1.0, output_tokens=0)]):
        assert set(figures(traces, 1.0)) == set(figures([ONE], 1.0))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_run_without_an_answer_has_no_latencies(name):
    figures = DEFINITIONS[name][1]([failed()], 1.0)
    assert {v for k, v in figures.items() if "ttft" in k or "first_token" in k} == {None}


@pytest.mark.parametrize(
    ("name", "key"),
    [("vllm", "mean_ttft_ms"), ("guidellm", "time_to_first_token_ms.mean"), ("aiperf", "time_to_first_token.avg")],
)
def test_all_of_them_count_from_the_send_and_leave_failures_out(name, key):
    assert DEFINITIONS[name][1]([ONE, failed()], 1.0)[key] == pytest.approx(500)


def test_vllm_divides_by_one_less_than_the_tokens():
    assert vllm([ONE], 1.0)["mean_tpot_ms"] == pytest.approx(200 / 4)


def test_vllm_pools_gaps_however_many_tokens_they_brought():
    found = vllm([ONE, trace(1.0, 2.0, tokens=5)], 1.0)
    assert found["mean_itl_ms"] == pytest.approx((100 + 100 + 1000) / 3)
    assert found["median_itl_ms"] == pytest.approx(100)


def test_vllm_interpolates_percentiles():
    found = vllm([trace(1.0), trace(2.0)], 1.0)
    assert (found["median_ttft_ms"], found["p99_ttft_ms"]) == pytest.approx((1500, 1990))


def test_vllm_ends_with_the_last_token():
    assert vllm([ONE], 1.0)["mean_e2el_ms"] == pytest.approx(700)


def test_vllm_rates_are_over_the_seconds_of_the_benchmark():
    found = vllm([ONE, ONE, failed()], 4.0)
    assert (found["request_throughput"], found["output_throughput"]) == (0.5, 2.5)
    assert found["total_token_throughput"] == (10 + 20) / 4
    assert (found["completed"], found["failed"]) == (2, 1)


def test_guidellm_has_the_first_wait_in_its_time_per_output_token():
    assert guidellm([ONE], 1.0)["time_per_output_token_ms.mean"] == pytest.approx(700 / 5)


def test_guidellm_has_a_gap_less_than_tokens():
    assert guidellm([ONE], 1.0)["inter_token_latency_ms.mean"] == pytest.approx(200 / 4)


def test_guidellm_weighs_an_answer_by_its_tokens():
    found = guidellm([trace(1.0, 2.0), trace(0.1, 0.2, 0.3, 0.4)], 1.0)
    assert found["time_per_output_token_ms.mean"] == pytest.approx((2 * 1000 + 4 * 100) / 6)
    assert found["time_per_output_token_ms.median"] == pytest.approx(100)
    assert found["inter_token_latency_ms.mean"] == pytest.approx((1 * 1000 + 3 * 100) / 4)


def test_guidellm_ends_a_request_with_its_response():
    assert guidellm([ONE], 1.0)["request_latency.mean"] == pytest.approx(1.0)


def test_guidellm_counts_chunks_where_the_server_does_not_count_tokens():
    silent = trace(1.0, 2.0, 3.0, tokens=None, output_tokens=None)
    assert guidellm([silent], 1.0)["inter_token_latency_ms.mean"] == pytest.approx(1000)


def test_aiperf_leaves_out_the_tokens_of_the_first_chunk():
    found = aiperf([ONE], 1.0)
    assert found["inter_token_latency.avg"] == pytest.approx(200 / 2)
    assert found["output_token_throughput_per_user.avg"] == pytest.approx(10)


@pytest.mark.parametrize("first", [{"tokens": None}, {"tokens": [0, 2, 3]}, {"tokens": [5, 0, 0]}])
def test_aiperf_takes_one_token_for_a_first_chunk_that_it_cannot_believe(first):
    one = trace(1.0, 1.1, 1.2, **first, **({"output_tokens": 5} if first["tokens"] is None else {}))
    assert aiperf([one], 1.0)["inter_token_latency.avg"] == pytest.approx(200 / 4)


def test_one_token_has_no_rate_of_its_own():
    assert vllm([trace(1.0)], 1.0)["mean_tpot_ms"] is None
    assert guidellm([trace(1.0)], 1.0)["inter_token_latency_ms.mean"] is None
    assert aiperf([trace(1.0)], 1.0)["inter_token_latency.avg"] is None
