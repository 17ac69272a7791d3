import pytest

from llmopt.serve.shims.hf_counters import BOUNDS, Counters, Times


def page(*reads, scheduled_s=10.5, cached=0):
    """The metrics of one request that was accepted at 10 s, each line's value by its name."""
    counters = Counters()
    counters.add(Times(prompt_tokens=7, accepted_s=10.0, scheduled_s=scheduled_s, cached=cached, reads=list(reads)))
    lines = [line.rpartition(" ") for line in counters.text(running=0).splitlines() if not line.startswith("#")]
    return {name.removeprefix("llmopt_hf:"): float(value) for name, _, value in lines}


def test_the_parts_of_a_request_add_up():
    told = page((11.0, 1), (11.2, 2), (12.0, 3))
    parts = ("request_queue_time", "request_prefill_time", "request_decode_time")
    assert sum(told[f"{part}_seconds_sum"] for part in parts) == pytest.approx(told["e2e_request_latency_seconds_sum"])
    assert told["time_to_first_token_seconds_sum"] == pytest.approx(1.0)


def test_a_read_of_several_tokens_is_shared_out_among_them():
    told = page((11.0, 1), (11.9, 4))
    assert told["inter_token_latency_seconds_count"] == 3
    assert told["inter_token_latency_seconds_sum"] == pytest.approx(0.9)


def test_an_unknown_start_is_in_no_histogram():
    told = page((11.0, 1), scheduled_s=None)
    assert told["request_queue_time_seconds_count"] == 0
    assert told["time_to_first_token_seconds_count"] == 1


def test_buckets_are_cumulative():
    told = page((11.0, 1))
    assert told['time_to_first_token_seconds_bucket{le="+Inf"}'] == 1
    below = [told[f'time_to_first_token_seconds_bucket{{le="{bound!r}"}}'] for bound in BOUNDS]
    assert below == sorted(below)
    assert below[0] == 0
    assert below[-1] == 1


def test_tokens_out_of_the_prefix_cache_are_counted():
    told = page((11.0, 1), cached=4)
    assert (told["prefix_cache_queries_total"], told["prefix_cache_hits_total"]) == (7, 4)
