import re
from dataclasses import replace

import pytest

from llmopt.core.domain import TokenChunk
from llmopt.core.errors import UsageError
from llmopt.core.metrics import (
    METRICS,
    Window,
    metric_names,
    parse_metric,
    rates,
    run_intervals,
    run_metrics,
    steady_window,
    token_gaps,
    tokens_in,
    value_of,
    whole_window,
)
from unit.make import closed_loop, failed, ns, trace


def of(name, one):
    return METRICS[name].of_request(one)


# --- of one request ---------------------------------------------------------------------------------------------


def test_ttft_counts_from_the_planned_moment():
    assert of("ttft", trace(3.0, planned_s=1.0, sent_s=2.5)) == pytest.approx(2.0)


def test_ttft_service_counts_from_the_send():
    assert of("ttft_service", trace(3.0, planned_s=1.0, sent_s=2.5)) == pytest.approx(0.5)


def test_e2e_ends_with_the_last_token_and_not_with_the_connection():
    one = trace(2.0, 4.0, planned_s=1.0, sent_s=1.5, closed_ns=ns(9.0))
    assert of("e2e", one) == pytest.approx(3.0)
    assert of("e2e_service", one) == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["ttft", "ttft_service", "ttfv", "e2e", "e2e_service", "tpot", "tps", "max_stall"])
def test_a_request_without_a_token_has_no_latency(name):
    assert of(name, failed()) is None


def test_ttfv_is_of_the_first_token_that_is_no_reasoning():
    thinking = TokenChunk(at_ns=ns(1.0), tokens=1, reasoning=True)
    one = replace(trace(2.0), chunks=(thinking, *trace(2.0).chunks))
    assert of("ttfv", one) == pytest.approx(2.0)
    assert of("ttft", one) == pytest.approx(1.0)


def test_ttfv_is_unknown_without_reasoning():
    assert of("ttfv", trace(2.0)) is None


def test_tpot_leaves_out_the_tokens_of_the_first_chunk():
    assert of("tpot", trace(1.0, 2.0, 3.0, tokens=[3, 1, 1])) == pytest.approx(2.0 / 2)


def test_tpot_takes_the_mean_chunk_where_counts_are_unknown():
    assert of("tpot", trace(1.0, 2.0, tokens=None, output_tokens=4)) == pytest.approx(1.0 / 2)


def test_tpot_of_a_one_chunk_answer_is_unknown():
    assert of("tpot", trace(1.0, tokens=32)) is None
    assert of("tps", trace(1.0, tokens=32)) is None


def test_tpot_is_unknown_without_a_token_count():
    assert of("tpot", trace(1.0, 2.0, tokens=None, output_tokens=None)) is None


def test_tps_is_one_over_tpot():
    assert of("tps", trace(1.0, 1.5, 2.0)) == pytest.approx(2.0)


def test_itl_divides_a_gap_over_the_tokens_of_its_chunk():
    assert token_gaps(trace(1.0, 2.0, 3.0, tokens=[1, 2, 1])) == pytest.approx([0.5, 0.5, 1.0])


def test_itl_needs_the_count_of_every_chunk():
    assert token_gaps(trace(1.0, 2.0, 3.0, tokens=[1, None, 1])) == []


def test_max_stall_is_the_largest_gap():
    assert of("max_stall", trace(1.0, 1.1, 1.9, 2.0)) == pytest.approx(0.8)


# --- of a run ---------------------------------------------------------------------------------------------------


def test_steady_window_is_from_the_first_completion_to_the_last_plan():
    window = steady_window(closed_loop(requests=16, users=4, first_s=1.0, gap_s=1.0, tokens=2), 4)
    assert (window.start_ns, window.end_ns) == (ns(2.0), ns(6.0))


def test_steady_window_needs_enough_rounds():
    assert steady_window(closed_loop(requests=15, users=4), 4) is None


def test_steady_window_counts_only_requests_that_succeeded():
    traces = closed_loop(requests=16, users=4)
    assert steady_window([failed(), *traces[1:]], 4) is None


def test_whole_window_is_from_the_first_plan_to_the_last_close():
    window = whole_window([trace(2.0, planned_s=1.0), trace(5.0, planned_s=3.0, closed_ns=ns(6.0))])
    assert (window.start_ns, window.end_ns) == (ns(1.0), ns(6.0))


def test_whole_window_of_nothing_is_unknown():
    assert whole_window([]) is None


def test_rates_count_what_was_read_inside_the_window():
    window = Window(start_ns=ns(0.0), end_ns=ns(4.0))
    found = rates([trace(1.0, 2.0, tokens=[1, 3]), trace(3.0, 5.0, tokens=[2, 8])], window)
    assert found["output_tps"] == pytest.approx((1 + 3 + 2) / 4)
    assert found["requests_per_s"] == pytest.approx(1 / 4)
    assert found["total_tps"] == pytest.approx((6 + 10) / 4)


def test_rates_leave_failed_requests_out():
    window = Window(start_ns=0, end_ns=ns(4.0))
    assert rates([trace(1.0, 2.0, error="cut: half of it")], window)["output_tps"] == 0


def test_rates_without_a_window_are_unknown():
    assert set(rates([trace(1.0)], None).values()) == {None}


def test_adjoining_windows_count_every_token_once():
    traces = closed_loop(requests=8, users=2)
    parts = [Window(start_ns=ns(a), end_ns=ns(a + 1.0)) for a in range(5)]
    whole = Window(start_ns=0, end_ns=ns(5.0))
    assert sum(tokens_in(traces, part) for part in parts) == tokens_in(traces, whole) == 80


def test_a_chunk_of_unknown_size_counts_the_mean_of_its_request():
    one = trace(1.0, 2.0, tokens=None, output_tokens=10)
    assert tokens_in([one], Window(start_ns=0, end_ns=ns(1.5))) == 5


def test_token_rates_are_unknown_and_not_zero_where_the_server_counts_nothing():
    found = run_metrics(closed_loop(output_tokens=None), 4)
    assert found["output_tps"] is None
    assert found["output_tps_whole"] is None
    assert found["requests_per_s"] > 0


def test_total_rate_is_unknown_where_prompt_lengths_are():
    found = run_metrics(closed_loop(prompt_tokens=None, prompt_tokens_asked=None), 4)
    assert found["total_tps"] is None


def test_run_metrics_of_a_perfect_run():
    found = run_metrics(closed_loop(requests=64, users=4, first_s=0.5, gap_s=0.1, tokens=6), 4)
    assert found["ttft_s"]["p95"] == pytest.approx(0.5)
    assert found["tpot_s"]["p50"] == pytest.approx(0.1)
    assert found["output_tps"] == pytest.approx(24.0)
    assert found["requests_per_s"] == pytest.approx(4.0)
    assert found["itl_s"]["max"] == pytest.approx(0.1)
    assert found["error_rate"] == 0


def test_failed_requests_worsen_the_tail():
    good = [trace(0.01 * n, 1.0, planned_s=0.0) for n in range(1, 97)]
    assert run_metrics([*good, *[failed()] * 4], 4)["ttft_s"]["p95"] > run_metrics(good, 4)["ttft_s"]["p95"]


def test_a_tail_full_of_failures_is_unknown():
    found = run_metrics([*closed_loop(90), *[failed()] * 10], 4)
    assert found["ttft_s"]["p95"] is None
    assert found["ttft_s"]["missing"] == 10


def test_failures_lower_the_speed_percentiles():
    found = run_metrics([*closed_loop(40), *[failed()] * 60], 4)
    assert found["tps"]["p50"] is None


def test_error_rate_is_the_share_of_all_planned_requests():
    assert run_metrics([*closed_loop(30), *[failed()] * 10], 4)["error_rate"] == pytest.approx(0.25)


def test_one_chunk_answers_are_no_failures_of_tpot():
    found = run_metrics([trace(1.0, 2.0, 3.0), trace(1.0, tokens=3)], 1)
    assert (found["tpot_s"]["n"], found["tpot_s"]["missing"]) == (1, 0)


def test_itl_of_a_run_needs_every_count():
    found = run_metrics([trace(1.0, 2.0), trace(1.0, 2.0, tokens=None, output_tokens=2)], 1)
    assert found["itl_s"] is None
    assert found["icl_s"]["n"] == 2


def test_cache_hit_rate_is_unknown_where_a_server_does_not_tell():
    assert run_metrics([trace(1.0, cached_tokens=5), trace(1.0)], 1)["cache_hit_rate"] is None


def test_cache_hit_rate_is_of_prompt_tokens():
    assert run_metrics([trace(1.0, cached_tokens=5), trace(1.0, cached_tokens=0)], 1)["cache_hit_rate"] == 0.25


def test_intervals_hold_their_figures_and_say_over_what():
    traces = closed_loop(64, 4)
    found, metrics = run_intervals(traces, 4), run_metrics(traces, 4)
    for name in ("ttft_p50", "tps_p50", "e2e_p50", "output_tps"):
        metric, statistic = parse_metric(name)
        assert found[name]["low"] - 1e-9 <= value_of(metrics, metric, statistic) <= found[name]["high"] + 1e-9
        assert found[name]["over"] == "blocks"


# --- the table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", metric_names())
def test_every_listed_name_is_a_metric(name):
    assert parse_metric(name)[0].name in METRICS


def test_a_statistic_is_split_from_its_metric():
    assert parse_metric("ttft_service_p95") == (METRICS["ttft_service"], "p95")


def test_a_scalar_whose_name_ends_like_a_statistic_is_itself():
    assert parse_metric("kl_p99") == (METRICS["kl_p99"], None)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UsageError, match="ttfb_p95") as caught:
        parse_metric("ttfb_p95")
    assert "ttft_p95" in caught.value.hint


@pytest.mark.parametrize("name", ["ttft", "ttft_s", "tps"])
def test_a_distribution_asks_for_a_statistic_that_it_takes(name):
    with pytest.raises(UsageError, match="distribution") as caught:
        parse_metric(name)
    for proposal in re.findall(r"\w+_p\d+", caught.value.hint):
        parse_metric(proposal)


def test_a_scalar_has_no_statistic():
    with pytest.raises(UsageError):
        parse_metric("output_tps_p95")


def test_keys_of_times_carry_their_unit_once():
    assert (METRICS["ttft"].key, METRICS["load_s"].key, METRICS["output_tps"].key) == ("ttft_s", "load_s", "output_tps")


def test_value_of_finds_scalars_and_statistics():
    record = {"ttft_s": {"p50": 2, "p95": None}, "output_tps": 7}
    assert value_of(record, METRICS["output_tps"], None) == 7.0
    assert value_of(record, METRICS["ttft"], "p50") == 2.0


def test_value_of_is_none_where_a_record_has_nothing():
    assert value_of({"ttft_s": {"p95": None}}, METRICS["ttft"], "p95") is None
    assert value_of({"ttft_s": None}, METRICS["ttft"], "p95") is None
    assert value_of({}, METRICS["output_tps"], None) is None
