import pytest

from llmopt.core.errors import UsageError
from unit.gate.imported import read, recording, runs_in


@pytest.fixture
def saved():
    return recording("vllm-detailed.json")


def summary(document):
    details = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")
    return {name: value for name, value in document.items() if name not in details}


def test_times_are_in_seconds_since_the_send(saved):
    (run,) = runs_in("vllm-detailed.json")
    assert run.metrics["ttft_service_s"]["mean"] == pytest.approx(saved["mean_ttft_ms"] / 1e3)
    assert run.metrics["ttft_service_s"]["n"] == saved["completed"]


def test_one_token_an_event_makes_its_tpot_ours(saved):
    assert read(saved).metrics["tpot_s"]["mean"] == pytest.approx(saved["mean_tpot_ms"] / 1e3, rel=1e-6)


def test_several_tokens_an_event_leave_tpot_its_own(saved):
    saved["itls"] = [gaps[::2] for gaps in saved["itls"]]
    run = read(saved)
    assert "tpot_s" not in run.metrics
    assert any(words.startswith("tpot") for words in run.unlike)
    assert run.figures["mean_tpot_ms"] == saved["mean_tpot_ms"]


def test_without_details_tpot_is_not_known_to_be_ours(saved):
    run = read(summary(saved))
    assert "tpot_s" not in run.metrics
    assert run.metrics["ttft_service_s"]["p50"] == pytest.approx(saved["median_ttft_ms"] / 1e3)


def test_the_chat_client_takes_an_empty_event_for_a_token():
    """Its mean of 14 ms is of a server that sends the first token after 20."""
    (run,) = runs_in("vllm-chat.json")
    assert run.figures["mean_ttft_ms"] < 20
    assert "ttft_service_s" not in run.metrics
    assert run.metrics["e2e_service_s"]["mean"] > 0.02


def test_percentiles_without_enough_samples_are_unknown():
    (run,) = runs_in("vllm-chat.json")
    assert run.figures["p95_e2el_ms"] > 0
    assert run.metrics["e2e_service_s"]["p95"] is None


def test_a_failed_request_takes_percentiles_away_but_not_the_mean(saved):
    run = read(summary(saved) | {"completed": 7, "failed": 1})
    assert run.metrics["ttft_service_s"]["p50"] is None
    assert run.metrics["ttft_service_s"]["mean"] > 0
    assert run.metrics["output_tps_whole"] is None


def test_with_details_a_failed_request_is_the_worst_one(saved):
    saved |= {"completed": 7, "failed": 1}
    saved["errors"][0], saved["output_lens"][0] = "refused", 0
    spread = read(saved).metrics["ttft_service_s"]
    assert (spread["n"], spread["missing"]) == (8, 1)
    assert spread["p50"] == sorted(saved["ttfts"][1:])[3]


def test_failures_of_before_they_were_counted_are_the_rest(saved):
    del saved["failed"]
    assert read(summary(saved) | {"completed": 5}).failed == saved["num_prompts"] - 5


def test_a_closed_loop(saved):
    workload = read(saved).workload
    assert (workload.load, workload.concurrency, workload.requests) == ("closed", 4, 8)
    assert workload.endpoint == "completions"


def test_an_open_loop():
    (run,) = runs_in("vllm-chat.json")
    assert (run.workload.load, run.workload.rate, run.workload.arrival) == ("open", 40.0, "poisson")
    assert run.workload.endpoint == "chat"


def test_burstiness_is_a_gamma_arrival(saved):
    workload = read(saved | {"request_rate": 5.0, "burstiness": 0.5}).workload
    assert (workload.arrival, workload.burstiness) == ("gamma", 0.5)


def test_a_ramp(saved):
    ramp = {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 9}
    workload = read(saved | ramp).workload
    assert (workload.load, workload.rate, workload.rate_to) == ("ramp", 1, 9)


def test_its_own_date_is_when_it_started(saved):
    assert read(saved).started_at.startswith("2026-11-2")


@pytest.mark.parametrize("name", ["mean_ttft_ms", "request_throughput", "total_input_tokens"])
@pytest.mark.parametrize("value", [float("nan"), "fast", float("inf")])
def test_a_figure_that_is_no_number_is_refused_by_name(saved, name, value):
    with pytest.raises(UsageError, match=name):
        read(summary(saved) | {name: value})


def test_lists_of_different_lengths_are_refused(saved):
    saved["ttfts"].pop()
    with pytest.raises(UsageError, match="different lengths"):
        read(saved)
