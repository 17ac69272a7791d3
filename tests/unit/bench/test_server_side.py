import math
import os
from contextlib import closing

import pytest

from llmopt.bench.runner import Traffic, measure
from llmopt.bench.server_side import Histogram, ServerMetrics, parse_page, requests_between, server_of, window
from llmopt.bench.target import Target
from llmopt.core.domain import Workload
from llmopt.serve import backend

SOURCE = "some words that are sent as they are, again and again, until there are enough of them " * 9
NAMES = {"time_to_first_token": "e:ttft", "preemptions": "e:preempted_total", "kv_cache_usage": "e:kv"}
HALF = Histogram(total=6.0, count=10, buckets={1.0: 2, 2.0: 6, 4.0: 10, math.inf: 10})


def histogram(counts, total, name="e:ttft", labels=""):
    """A page's lines; ``counts``: bound → observations at or below it."""
    lines = [f'{name}_bucket{{{labels}le="{bound}"}} {n}' for bound, n in counts.items()]
    last = list(counts.values())[-1]
    return "\n".join([*lines, f"{name}_sum{{{labels}}} {total}", f"{name}_count{{{labels}}} {last}", ""])


def page(text, names=NAMES):
    return parse_page(text, list(names.values()))


# --- reading a page -----------------------------------------------------------------------------------------------


def test_values_are_found_whatever_their_labels_say():
    found = page('# HELP e:kv x\n# TYPE e:kv gauge\ne:kv{model="a } \\" b",engine="0"} 0.25\ne:kv{engine="1"} 1e-1\n')
    assert found.values("e:kv") == [0.25, 0.1]


def test_a_counter_may_be_named_with_or_without_its_ending():
    text = "e:preempted_total 3\n"
    assert page(text, {"a": "e:preempted"}).values("e:preempted") == [3]
    assert page(text).values("e:preempted_total") == [3]


def test_other_lines_are_passed_over():
    assert page("e:kv_more 1\ne:kv nonsense\n\x00\xff\ne:kv\n").samples == {}


def test_values_that_are_no_number_are_unknown():
    assert page("e:kv NaN\n").values("e:kv") == []


def test_a_time_stamp_behind_the_value_is_no_value():
    assert page("e:kv 0.5 1700000000000\n").values("e:kv") == [0.5]


def test_histograms_of_several_engines_are_added_up():
    text = histogram({"1.0": 1, "+Inf": 2}, 3.0, labels='engine="0",')
    text += histogram({"1.0": 3, "+Inf": 3}, 1.5, labels='engine="1",')
    found = page(text).histogram("e:ttft")
    assert (found.count, found.total, dict(found.buckets)) == (5, 4.5, {1.0: 4, math.inf: 5})


# --- what a histogram says ----------------------------------------------------------------------------------------


def test_a_percentile_lies_straight_between_the_bounds_of_its_bucket():
    assert HALF.quantile(0.5) == pytest.approx(1.75)
    assert HALF.quantile(1.0) == pytest.approx(4.0)


def test_below_the_first_bound_and_above_the_last_nothing_is_known():
    assert HALF.quantile(0.1) is None
    assert Histogram(total=9, count=2, buckets={1.0: 0, math.inf: 2}).quantile(0.5) is None


def test_the_mean_is_exact_and_percentiles_say_that_they_are_not():
    found = HALF.distribution()
    assert (found["mean"], found["n"], found["interpolated"]) == (0.6, 10, True)
    assert found["p95"] is None, "ten samples are too few"


def test_only_what_came_in_between_counts():
    before = page(histogram({"1.0": 4, "+Inf": 4}, 2.0))
    after = page(histogram({"1.0": 4, "2.0": 10, "+Inf": 10}, 11.0))
    found = window(NAMES, before, after, 6)
    assert (found["server_ttft_s"]["mean"], found["server_ttft_s"]["n"], found["requests"]) == (1.5, 6, 6)


def test_a_counter_that_ran_backwards_says_that_the_server_was_another_one():
    before, after = page("e:preempted_total 5\n"), page("e:preempted_total 2\n")
    assert window(NAMES, before, after, 1) == {"restarted": True}
    assert window(NAMES, after, before, 1)["preemptions"] == 3


def test_a_counter_that_is_gone_says_so_too():
    assert window(NAMES, page("e:preempted_total 5\n"), page("e:kv 0.1\n"), 1) == {"restarted": True}
    assert window(NAMES, page(histogram({"+Inf": 9}, 1.0)), page(histogram({"+Inf": 2}, 9.0)), 2) == {"restarted": True}


def test_a_counter_that_was_not_there_before_began_at_zero():
    assert window(NAMES, page(""), page("e:preempted_total 2\n"), 1)["preemptions"] == 2


def test_without_a_page_nothing_is_known():
    assert window(NAMES, None, page("e:kv 1\n"), 1) == {}


def test_an_engine_that_only_adds_up_seconds_has_a_mean():
    names = {"prefill_time": "llamacpp:prompt_seconds_total", "inter_token_latency": "llamacpp:itl_seconds_total"}
    before, after = page("", names), page("llamacpp:prompt_seconds_total 6.0\nllamacpp:itl_seconds_total 4\n", names)
    found = window(names, before, after, 12)
    assert (found["server_prefill_s"]["mean"], found["server_prefill_s"]["p50"]) == (0.5, None)
    assert found["server_itl_s"] is None, "the number of gaps is not that of requests"


def test_the_share_of_prompt_tokens_from_the_cache():
    names = {"prefix_cache_queries": "q", "prefix_cache_hits": "h"}
    assert window(names, page("q 100\nh 50\n", names), page("q 300\nh 100\n", names), 1)["cache_hit_rate"] == 0.25
    assert window(names, page("q 0\nh 0\n", names), page("q 0\nh 0\n", names), 1)["cache_hit_rate"] is None


def test_tokens_that_were_not_in_the_cache_are_the_rest():
    names = {"prefix_cache_misses": "m", "prefix_cache_hits": "h"}
    assert window(names, page("m 0\nh 0\n", names), page("m 300\nh 100\n", names), 1)["cache_hit_rate"] == 0.25


# --- asking a server ----------------------------------------------------------------------------------------------


@pytest.fixture
def told(scripted):
    """A target whose server also tells of itself."""

    def start(*arguments, **options):
        target = scripted(*arguments, **options)
        url = target.base_url.removesuffix("/v1") + "/metrics"
        return Target(
            base_url=target.base_url, model="scripted", pid=target.pid, usage_per_chunk=True,
            metrics_url=url, metric_names=backend("scripted").metrics,
        )  # fmt: skip

    return start


def run(target, requests=60, **options):
    workload = Workload(
        **{"input_tokens": 16, "output_tokens": 8, "concurrency": 4, "requests": requests, "warmup_requests": 0}
        | options
    )
    return measure(target, workload, Traffic(salt="salt", source=SOURCE, tokenizer=None))


def codes(result):
    return {d.code for d in result.verdict.reasons}


def test_the_server_says_what_the_client_measured(told):
    result = run(told("--ttft-ms", "20", "--tpot-ms", "5"), requests=64)
    found = result.server
    assert found["requests"] == 64
    assert found["server_ttft_s"]["mean"] == pytest.approx(0.020, abs=0.015)
    assert found["server_itl_s"]["mean"] == pytest.approx(0.005, abs=0.004)
    assert result.metrics["server_ttft_s"] == found["server_ttft_s"]
    assert found["agreement"]["ttft"]["agrees"] is True
    assert "server_disagrees" not in codes(result)


def test_the_warm_up_is_not_in_it(told):
    assert run(told(), requests=5, warmup_requests=3).server["requests"] == 5


def test_a_server_whose_clock_differs_is_doubted(told):
    result = run(told("--metrics-late-ms", "40"))
    assert "server_disagrees" in codes(result)


def test_requests_of_somebody_else_are_noticed(told):
    import json

    from llmopt.serve.process import DIRECT

    target = told("--ttft-ms", "1", "--tpot-ms", "1")
    body = json.dumps({"model": "scripted", "prompt": "a", "max_tokens": 2, "stream": True}).encode()
    asked = []

    def ask_too(now):
        if not asked:
            asked.append(DIRECT.open(f"{target.base_url}/completions", body, timeout=5).read())

    workload = Workload(input_tokens=16, output_tokens=8, concurrency=2, requests=40, warmup_requests=0)
    result = measure(target, workload, Traffic(salt="s", source=SOURCE, tokenizer=None), progress=ask_too)
    assert result.server["requests"] == 41
    assert "other_traffic" in codes(result)
    assert "the server counts 41 first tokens" in result.server["agreement"]["ttft"]["why"]


def test_prefix_cache_hits_of_the_server_are_the_rate(told):
    result = run(told("--cached-tokens", "-1", "--prompt-tokens", "16"))
    assert result.metrics["cache_hit_rate"] == pytest.approx(15 / 16)
    assert "prefix_cache" in codes(result)


def test_preemptions_are_doubted(told):
    result = run(told("--preemptions", "1"), requests=8)
    assert result.metrics["preemptions"] == 8
    assert "preemptions" in codes(result)


def test_a_full_kv_cache_is_doubted(told):
    result = run(told("--kv-capacity-tokens", "20", "--tpot-ms", "20"), requests=16)
    assert result.metrics["kv_usage_peak"] == 1.0
    assert "kv_cache_full" in codes(result)


def test_the_queue_of_the_server_is_seen(told):
    result = run(told("--ttft-ms", "50", "--tpot-ms", "20", slots=1), requests=12)
    assert (result.telemetry["peak_running"], result.telemetry["peak_waiting"]) == (1, 3)
    assert result.server["server_queue_s"]["mean"] > result.server["server_prefill_s"]["mean"]


def test_a_server_can_be_asked_for_less_than_everything(told):
    target = told()
    with closing(ServerMetrics(url=target.metrics_url, names=target.metric_names)) as asked:
        first = asked.first()
        assert asked.chosen
        assert set(asked.gauges()) == {"kv_cache_usage", "running", "waiting"}
        assert requests_between(asked.names, first, asked.read()) == 0


def test_a_server_that_does_not_tell_is_none(answering):
    url, _ = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with closing(ServerMetrics(url=url, names=NAMES)) as asked:
        assert (asked.first(), asked.gauges(), asked.read()) == (None, {}, None)


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(answering):
    """uvicorn closes after 5 s, and a run lasts longer."""
    url, told = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ne:kv 0.5")
    with closing(ServerMetrics(url=url, names={"kv_cache_usage": "e:kv"})) as asked:
        assert asked.read().values("e:kv") == asked.read().values("e:kv") == [0.5]
    assert len(told) == 2


def test_a_page_that_is_no_page_is_none(answering):
    url, _ = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n\x00\x01")
    with closing(ServerMetrics(url=url, names=NAMES)) as asked:
        assert asked.first() is None


def test_the_key_goes_to_the_measured_server_alone(monkeypatch):
    monkeypatch.setitem(os.environ, "LLMOPT_API_KEY", "secret-key")
    own = server_of("http://a:1/metrics", NAMES, "http://a:1/v1", {"X-Tenant": "b"})
    other = server_of("http://a:2/metrics", NAMES, "http://a:1/v1", {"X-Tenant": "b"})
    assert own.headers == {"X-Tenant": "b", "Authorization": "Bearer secret-key"}
    assert other.headers == {}


def test_the_measured_server_is_known_by_host_and_port(monkeypatch):
    monkeypatch.delitem(os.environ, "LLMOPT_API_KEY", raising=False)
    with_login = server_of("http://a:80/metrics", NAMES, "http://user:password@a/v1", {})
    assert with_login.headers == {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}
    assert server_of("http://a:80/metrics", NAMES, "https://user:password@a:80/v1", {}).headers == {}


def test_without_an_address_or_names_nobody_is_asked():
    assert server_of(None, NAMES, "http://a/v1", {}) is None
    assert server_of("http://a/metrics", {}, "http://a/v1", {}) is None
