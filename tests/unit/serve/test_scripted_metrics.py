"""What the scripted server tells of itself is what it did, by its own stamps."""

import json

import pytest

from llmopt.serve.process import DIRECT
from llmopt.serve.scripted import running


@pytest.fixture(scope="module")
def server():
    with running("--ttft-ms", "5", "--tpot-ms", "1", "--kv-capacity-tokens", "1000") as url:
        yield url.removesuffix("/v1")


def ask(server, tokens=3, **body):
    body = {"model": "scripted", "prompt": "a b", "max_tokens": tokens, "stream": True} | body
    with DIRECT.open(f"{server}/v1/completions", json.dumps(body).encode(), timeout=5) as response:
        response.read()


def page(server, query=""):
    with DIRECT.open(f"{server}/metrics{query}", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def value(found, name):
    return found[f'scripted:{name}{{model_name="scripted"}}']


def test_each_request_is_counted_once_however_often_it_is_asked(server):
    before = page(server)
    ask(server)
    ask(server)
    for _ in range(2):
        after = page(server)
        assert value(after, "time_to_first_token_count") - value(before, "time_to_first_token_count") == 2
        assert value(after, "inter_token_latency_count") - value(before, "inter_token_latency_count") == 4
        assert value(after, "e2e_time_count") - value(before, "e2e_time_count") == 2
        assert value(after, "prefix_cache_queries_total") - value(before, "prefix_cache_queries_total") == 4


def test_its_times_are_those_of_its_log(server):
    before = page(server)
    ask(server)
    after = page(server)
    with DIRECT.open(f"{server}/scripted/log", timeout=5) as response:
        last = json.load(response)[-1]
    told = value(after, "time_to_first_token_sum") - value(before, "time_to_first_token_sum")
    assert told == pytest.approx((last["token_ns"][0] - last["received_ns"]) / 1e9, abs=1e-6)


def test_a_setting_of_the_model_is_told(server):
    before = page(server)
    ask(server, model="scripted?preemptions=3&cached_tokens=1")
    after = page(server)
    assert value(after, "preemptions_total") - value(before, "preemptions_total") == 3
    assert value(after, "prefix_cache_hits_total") - value(before, "prefix_cache_hits_total") == 1


def test_only_what_is_asked_for(server):
    found = page(server, "?name[]=scripted:running&name[]=scripted:e2e_time_sum")
    assert {name.partition("{")[0] for name in found} >= {"scripted:running", "scripted:e2e_time_sum"}
    assert not any("queue" in name or "waiting" in name for name in found)


def test_nobody_is_running_when_nobody_asks(server):
    found = page(server)
    assert [value(found, name) for name in ("running", "waiting", "kv_cache_usage")] == [0, 0, 0]
