import math
import random
import re
import time
from dataclasses import replace

import pytest

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.core.metrics import (
    METRICS,
    Window,
    half_width,
    metric_names,
    parse_metric,
    rates,
    run_intervals,
    run_metrics,
    steady_window,
    tokens_in,
    value_of,
    warm_up_requests,
    whole_window,
)
from unit.make import closed_loop, failed, ns, open_loop, trace

FOUR = Workload(concurrency=4)
ONE = Workload(concurrency=1)
OPEN = Workload(load="open", rate=10.0)


def of(name, one):
    return METRICS[name].of_request(one)


def stretched(factor, start_s, *, steps=4, index=0):
    """A request that takes ``factor`` × 1 s."""
    return trace(*(start_s + factor * (n + 1) / steps for n in range(steps)), planned_s=start_s, index=index)


def one_user(factors):
    """A closed loop of one whose n-th request takes ``factors[n]`` seconds."""
    start, traces = 0.0, []
    for index, factor in enumerate(factors):
        traces.append(stretched(factor, start, index=index))
        start += factor
    return traces


def noise(seed, count, sigma=0.3):
    return [random.Random(seed * 10_000 + n).lognormvariate(0, sigma) for n in range(count)]


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
    one = trace(1.0, 2.0, reasoning=True, first_visible_ns=ns(2.0))
    assert of("ttfv", one) == pytest.approx(2.0)
    assert of("ttft", one) == pytest.approx(1.0)


def test_ttfv_is_unknown_without_reasoning():
    assert of("ttfv", trace(2.0, first_visible_ns=ns(2.0))) is None


def test_ttfv_is_unknown_where_reasoning_never_ended():
    assert of("ttfv", trace(2.0, reasoning=True)) is None


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


def test_max_stall_is_the_largest_gap():
    assert of("max_stall", trace(1.0, 1.1, 1.9, 2.0)) == pytest.approx(0.8)


# --- of a run ---------------------------------------------------------------------------------------------------


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


def test_tokens_of_a_stream_that_failed_count_but_not_its_request():
    found = rates([trace(1.0, 2.0, error="cut: half of it")], Window(start_ns=0, end_ns=ns(4.0)))
    assert (found["output_tps"], found["requests_per_s"]) == (pytest.approx(2 / 4), 0)


def test_a_failed_stream_without_counts_has_the_mean_chunks_of_the_others():
    cut = trace(1.0, 2.0, 3.0, tokens=None, output_tokens=None, error="cut: half of it")
    window = Window(start_ns=0, end_ns=ns(4.0))
    assert tokens_in([cut, trace(1.0, 2.0, tokens=4)], window) == pytest.approx(3 * 4 + 8)


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
    found = run_metrics(closed_loop(output_tokens=None), FOUR)
    assert found["output_tps"] is None
    assert found["output_tps_whole"] is None
    assert found["requests_per_s"] > 0


def test_total_rate_is_unknown_where_prompt_lengths_are():
    found = run_metrics(closed_loop(prompt_tokens=None, prompt_tokens_asked=None), FOUR)
    assert found["total_tps"] is None


def test_run_metrics_of_a_perfect_run():
    found = run_metrics(closed_loop(requests=64, users=4, first_s=0.5, gap_s=0.1, tokens=6), FOUR)
    assert found["ttft_s"]["p95"] == pytest.approx(0.5)
    assert found["tpot_s"]["p50"] == pytest.approx(0.1)
    assert found["output_tps"] == pytest.approx(24.0)
    assert found["requests_per_s"] == pytest.approx(4.0)
    assert found["itl_s"]["max"] == pytest.approx(0.1)
    assert found["error_rate"] == 0


def test_failed_requests_worsen_the_tail():
    good = [trace(0.01 * n, 1.0, planned_s=0.0) for n in range(1, 97)]
    assert run_metrics([*good, *[failed()] * 4], FOUR)["ttft_s"]["p95"] > run_metrics(good, FOUR)["ttft_s"]["p95"]


def test_a_tail_full_of_failures_is_unknown():
    found = run_metrics([*closed_loop(90), *[failed()] * 10], FOUR)
    assert found["ttft_s"]["p95"] is None
    assert found["ttft_s"]["missing"] == 10


def test_failures_lower_the_speed_percentiles():
    found = run_metrics([*closed_loop(40), *[failed()] * 60], FOUR)
    assert found["tps"]["p50"] is None


def test_error_rate_is_the_share_of_all_planned_requests():
    assert run_metrics([*closed_loop(30), *[failed()] * 10], FOUR)["error_rate"] == pytest.approx(0.25)


def test_one_chunk_answers_are_no_failures_of_tpot():
    found = run_metrics([trace(1.0, 2.0, 3.0), trace(1.0, tokens=3)], ONE)
    assert (found["tpot_s"]["n"], found["tpot_s"]["missing"]) == (1, 0)


def test_itl_divides_a_gap_over_the_tokens_of_its_chunk():
    found = run_metrics([trace(1.0, 2.0, 3.0, tokens=[1, 2, 1])], ONE)["itl_s"]
    assert (found["n"], found["min"], found["max"]) == (3, pytest.approx(0.5), pytest.approx(1.0))


def test_itl_needs_every_count():
    found = run_metrics([trace(1.0, 2.0), trace(1.0, 2.0, tokens=None, output_tokens=2)], ONE)
    assert found["itl_s"] is None
    assert found["icl_s"]["n"] == 2


def test_itl_does_not_need_the_count_of_an_answer_without_gaps():
    found = run_metrics([trace(1.0, 2.0), trace(1.0, tokens=None, output_tokens=2)], ONE)
    assert found["itl_s"]["n"] == 1


def test_gaps_are_within_requests_that_succeeded():
    found = run_metrics([trace(1.0, 2.0), trace(5.0, 8.0, error="cut: half"), trace(9.0, 9.5)], ONE)
    assert (found["icl_s"]["n"], found["icl_s"]["max"]) == (2, pytest.approx(1.0))


def test_failures_are_counted_by_kind():
    found = run_metrics([trace(1.0), failed(), failed(error="dropped: never sent"), failed()], ONE)
    assert found["errors"] == {"refused": 2, "dropped": 1}
    assert (found["requests_ok"], found["requests_failed"], found["dropped"]) == (1, 3, 1)


def test_cache_hit_rate_is_unknown_where_a_server_does_not_tell():
    assert run_metrics([trace(1.0, cached_tokens=5), trace(1.0)], ONE)["cache_hit_rate"] is None


def test_cache_hit_rate_is_of_prompt_tokens():
    assert run_metrics([trace(1.0, cached_tokens=5), trace(1.0, cached_tokens=0)], ONE)["cache_hit_rate"] == 0.25


def test_intervals_hold_their_figures_and_say_over_what():
    traces = closed_loop(64, 4)
    found, metrics = run_intervals(traces, FOUR), run_metrics(traces, FOUR)
    for name in ("ttft_p50", "tps_p50", "e2e_p50", "output_tps"):
        metric, statistic = parse_metric(name)
        assert found[name]["low"] - 1e-9 <= value_of(metrics, metric, statistic) <= found[name]["high"] + 1e-9
        assert found[name]["over"] == "blocks"


def test_an_interval_holds_infinitely_slow_failures():
    assert run_intervals([*closed_loop(64), *[failed(planned_s=3.0)] * 64], FOUR)["ttft_p50"] is None


def test_a_run_of_many_chunks_is_computed_in_a_blink():
    traces = closed_loop(2560, 32, tokens=64)
    run_metrics(traces[:64], FOUR)
    start = time.process_time()
    run_metrics(traces, Workload(concurrency=32))
    run_intervals(traces, Workload(concurrency=32))
    assert time.process_time() - start < 0.4


# --- the steady window ------------------------------------------------------------------------------------------


def test_a_steady_closed_loop_counts_from_the_first_completion_to_the_last_plan():
    window = steady_window(closed_loop(requests=16, users=4, first_s=1.0, gap_s=1.0, tokens=2), FOUR)
    assert (window.start_ns, window.end_ns) == (ns(2.0), ns(6.0))


def test_a_steady_open_loop_counts_from_the_first_completion_to_the_last_arrival():
    window = steady_window(open_loop(64, rate=10.0, first_s=0.5, gap_s=0.5, tokens=2), OPEN)
    assert (window.start_ns, window.end_ns) == (ns(1.0), ns(6.3))


def test_the_rate_of_a_steady_open_loop_is_that_of_its_arrivals():
    found = run_metrics(open_loop(64, rate=10.0, first_s=0.5, gap_s=0.5, tokens=2), OPEN)
    assert found["requests_per_s"] == pytest.approx(10.0, rel=0.02)


def test_steady_window_needs_enough_rounds():
    assert steady_window(closed_loop(requests=15, users=4), FOUR) is None


@pytest.mark.parametrize(("requests", "found"), [(30, False), (31, True)])
def test_an_open_loop_needs_twenty_completions(requests, found):
    traces = open_loop(requests, rate=10.0, first_s=0.5, gap_s=0.45, tokens=2)
    assert (steady_window(traces, OPEN) is not None) == found


def test_steady_window_counts_only_requests_that_succeeded():
    assert steady_window([failed(), *closed_loop(requests=16, users=4)[1:]], FOUR) is None


def test_a_run_without_an_answer_has_no_steady_window():
    assert steady_window([failed()] * 64, FOUR) is None
    assert steady_window([], FOUR) is None


def test_a_slow_beginning_is_cut_off():
    traces = one_user([5.0] * 10 + noise(1, 90, sigma=0.05))
    assert warm_up_requests(traces, ONE) == 10
    assert steady_window(traces, ONE).start_ns == traces[10].planned_ns


def test_a_perfect_run_has_no_warm_up():
    assert warm_up_requests(closed_loop(64, 4), FOUR) == 0


@pytest.mark.parametrize("count", [64, 256, 1000])
def test_a_queue_that_grows_never_gets_steady(count):
    overloaded = [stretched(1 + n / 8, n / 10, index=n) for n in range(count)]
    assert warm_up_requests(overloaded, OPEN) is None
    assert steady_window(overloaded, OPEN) is None


def test_a_queue_in_the_client_is_seen_too():
    waiting = [trace(0.2 * n + 0.5, planned_s=0.1 * n, sent_s=0.2 * n, index=n) for n in range(100)]
    assert steady_window(waiting, OPEN) is None


def test_a_server_that_slows_down_late_never_gets_steady():
    assert steady_window(one_user([1.0] * 70 + [2.0] * 30), ONE) is None


def test_a_ramp_is_not_steady_by_design():
    assert steady_window(open_loop(64), replace(OPEN, load="ramp", rate_to=20.0)) is None


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("count", [64, 128, 512])
def test_noise_is_neither_a_trend_nor_much_of_a_warm_up(count, sigma):
    found = [warm_up_requests(one_user(noise(seed, count, sigma)), ONE) for seed in range(100)]
    assert found.count(None) <= 2
    assert sum(cut is not None and cut > 0.4 * count for cut in found) <= 5


# --- service level objectives -----------------------------------------------------------------------------------


def with_slos(*slos, **fields):
    return Workload(**{"concurrency": 1, "slos": slos} | fields)


def attained(traces, *slos):
    return run_metrics(traces, with_slos(*slos))["slo_attainment"]


def test_a_request_must_meet_every_slo():
    traces = [trace(0.4, 1.0), trace(0.6, 1.0), trace(0.4, 2.0), trace(0.6, 2.0)]
    assert attained(traces, "ttft<500ms") == 0.5
    assert attained(traces, "ttft<500ms", "e2e<1.5s") == 0.25


def test_the_statistic_of_an_slo_says_nothing_about_one_request():
    assert attained([trace(0.4), trace(0.6)], "ttft_p95<500ms") == 0.5


def test_a_request_that_failed_meets_no_slo():
    assert attained(
        [trace(0.4, 0.5), trace(0.4, 0.5, error="cut: half"), failed()], "tps>1", "ttft<1s"
    ) == pytest.approx(1 / 3)


def test_what_a_request_does_not_tell_is_not_met():
    assert attained([trace(0.4)], "tpot<1s") == 0


def test_without_slos_nothing_is_said_of_them():
    found = run_metrics(closed_loop(), FOUR)
    assert (found["goodput_rps"], found["goodput_rps_whole"], found["slo_attainment"]) == (None, None, None)
    assert "slo_attainment" not in run_intervals(closed_loop(), FOUR)


def test_goodput_counts_the_requests_that_met_the_slos():
    halves = one_user([1.0, 2.0] * 32)
    found = run_metrics(halves, with_slos("e2e<1.5s"))
    assert found["goodput_rps"] == pytest.approx(found["requests_per_s"] / 2, rel=0.05)
    assert found["goodput_rps_whole"] == pytest.approx(32 / 96)


def test_goodput_is_of_the_whole_run_where_none_of_it_was_steady():
    found = run_metrics(one_user([1.0, 2.0]), with_slos("e2e<1.5s"))
    assert found["requests_per_s"] is None
    assert found["goodput_rps"] == found["goodput_rps_whole"] == pytest.approx(1 / 3)


def test_every_slo_is_counted_by_itself():
    traces = [trace(0.4, 2.0)] * 8 + [trace(0.6, 0.9)] * 2 + [failed()]
    found = run_metrics(traces, with_slos("ttft<500ms", "e2e<1s"))
    assert found["slos_met"] == {"ttft<500ms": 8, "e2e<1s": 2}
    assert found["slo_attainment"] == 0
    assert run_metrics(traces, with_slos())["slos_met"] is None


def test_slo_attainment_has_a_wilson_interval():
    found = run_intervals([trace(0.4)] * 8 + [trace(0.6)] * 2, with_slos("ttft<500ms"))["slo_attainment"]
    assert (found["low"], found["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_an_slo_that_is_none_is_refused():
    with pytest.raises(UsageError, match="not a metric of one request"):
        run_metrics(closed_loop(), with_slos("output_tps>5"))


# --- until ------------------------------------------------------------------------------------------------------


def half(traces, name):
    return half_width(traces, *parse_metric(name))


def test_half_width_shrinks_with_the_root_of_the_number_of_requests():
    widths = [half(one_user(noise(1, count)), "e2e_mean") for count in (400, 6400)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)


def test_half_width_of_the_mean_is_near_the_normal_interval():
    values = noise(3, 1000)
    mean = sum(values) / 1000
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 1000)
    assert half(one_user(values), "e2e_mean") == pytest.approx(1.96 * deviation / mean / math.sqrt(1000), rel=0.4)


@pytest.mark.parametrize("name", ["ttft_p99", "ttft_p50", "tps_p50", "e2e_mean", "output_tps", "requests_per_s"])
def test_half_width_of_what_until_may_name(name):
    assert 0 < half(one_user(noise(1, 400)), name) < 0.5


def test_half_width_of_a_run_without_noise_is_nothing():
    assert half(closed_loop(64), "ttft_p50") == pytest.approx(0, abs=1e-6)


def test_half_width_is_unknown_with_few_requests():
    assert half(one_user(noise(1, 29)), "ttft_p50") is None
    assert half(one_user(noise(1, 298)), "ttft_p99") is None
    assert half([failed()] * 64, "ttft_p50") is None
    assert half([failed()] * 64, "output_tps") is None


def test_half_width_is_unknown_where_the_percentile_is_a_failure():
    assert half([*closed_loop(64), *[failed()] * 64], "ttft_p95") is None


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


def test_a_distribution_may_be_named_without_a_statistic_where_that_is_asked_for():
    assert parse_metric("ttft", bare_distribution=True) == (METRICS["ttft"], None)


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
