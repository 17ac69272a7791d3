from __future__ import annotations

from typing import Any

import pytest

from llmopt.deploy.plan import Slo
from llmopt.deploy.queries import le, queries
from llmopt.deploy.rules import literal, rules
from tests.unit.deploy.make import deployment

LLAMACPP = {
    "backend": "llamacpp",
    "gpus": 0,
    "metrics": {
        "decode_time": "llamacpp:tokens_predicted_seconds_total",
        "prefix_cache_hits": "llamacpp:prompt_tokens_cached_total",
        "prefix_cache_misses": "llamacpp:prompt_tokens_total",
        "waiting": "llamacpp:requests_deferred",
    },
}


def found(name: str, key: str = "alert", **changes: Any) -> list[dict[str, Any]]:
    groups = rules(deployment(**changes))["groups"]
    return [rule for group in groups for rule in group["rules"] if rule.get(key) == name]


def test_every_rule_carries_the_name_of_the_deployment() -> None:
    made = [rule for group in rules(deployment())["groups"] for rule in group["rules"]]
    assert {rule["labels"]["deployment"] for rule in made} == {"tiny"}


def test_every_alert_says_where_its_threshold_is_from() -> None:
    made = [rule for group in rules(deployment())["groups"] for rule in group["rules"] if "alert" in rule]
    assert all(rule["annotations"]["threshold"] for rule in made)


def test_a_lost_replica_is_told_after_two_scrapes() -> None:
    (alert,) = found("InstanceDown", wishes={"scrape_s": 1.0})
    assert alert["for"] == "2s"


def test_the_queue_may_be_as_long_as_what_was_measured() -> None:
    (alert,) = found("QueueGrowing")
    assert alert["expr"] == 'vllm:num_requests_waiting{job="engine"} > 16'


def test_nothing_is_asked_of_an_engine_that_it_does_not_export() -> None:
    text = str(rules(deployment(engine=LLAMACPP)))
    assert "vllm:" not in text
    assert "kv_cache" not in text
    assert not found("Preemptions", engine=LLAMACPP)


def test_an_engine_without_metrics_is_watched_by_the_canary_alone() -> None:
    text = str(rules(deployment(engine={"metrics_path": None, "gpus": 0})))
    assert 'job="engine"' not in text
    assert "llmopt_probe_up" in text


def test_gpu_alerts_only_where_there_is_one() -> None:
    assert found("GpuHot")
    assert not found("GpuHot", engine={"gpus": 0})


def test_memory_of_a_gpu_is_held_to_that_of_the_gpus_and_not_to_main_memory() -> None:
    evidence = {"peak_memory_bytes": 4 * 2**30, "peak_vram_bytes": 70 * 2**30}
    [rule] = found("GpuMemoryAboveMeasured", evidence=evidence, engine={"gpus": 2})
    assert rule["expr"].endswith(f"> {35 * 2**30 * 1.1:.0f}")
    assert not found("GpuMemoryAboveMeasured", evidence=evidence | {"peak_vram_bytes": None})


def test_jobs_can_have_other_names() -> None:
    text = str(rules(deployment(), jobs={"engine": "tiny", "canary": "tiny-canary"}))
    assert 'job="engine"' not in text
    assert 'job="tiny"' in text


def test_an_slo_is_counted_by_the_histogram_that_has_its_bound() -> None:
    alert = found("SloBurn")[0]
    assert alert["labels"]["slo"] == "ttft_p95"
    assert "requests above 0.5 s in vllm:time_to_first_token_seconds" in alert["annotations"]["threshold"]


def test_the_nearest_bound_is_named_where_none_is_the_slo_own() -> None:
    slo = Slo(text="ttft_p95<450ms", metric="ttft", share=0.95, bound=0.45, measured=0.4)
    alert = found("SloBurn", evidence={"slos": (slo,)})[0]
    assert (
        "above 0.5 s in vllm:time_to_first_token_seconds, the nearest bound to 0.45 s"
        in alert["annotations"]["threshold"]
    )


@pytest.mark.parametrize("bound", [0.02, 30.0])
def test_the_canary_counts_where_every_bound_is_far_off(bound: float) -> None:
    slo = Slo(text="ttft_p95<x", metric="ttft", share=0.95, bound=bound, measured=None)
    (rule,) = found("llmopt:slo_missed:ratio_rate5m", "record", evidence={"slos": (slo,)})
    assert 'llmopt_probe_slo_missed_total{job="canary",slo="ttft_p95"}' in rule["expr"]


def test_a_wide_budget_still_has_a_threshold_that_can_be_reached() -> None:
    slo = Slo(text="ttft_p50<0.5s", metric="ttft", share=0.5, bound=0.5, measured=None)
    limits = [float(rule["expr"].rsplit("> ", 1)[1]) for rule in found("SloBurn", evidence={"slos": (slo,)})]
    assert limits == [0.9, 0.9, 0.9, 0.5]


def test_capacity_alerts_need_a_measured_capacity() -> None:
    assert found("AboveCapacity")[0]["expr"].endswith("> 9.6")
    assert not found("AboveCapacity", capacity={"total_rps": None})


@pytest.mark.parametrize(
    ("bound", "labels"), [(0.5, {"0.5"}), (1.0, {"1", "1.0"}), (0.0005, {"0.0005"}), (2.5, {"2.5"})]
)
def test_a_bound_is_found_however_it_is_written(bound: float, labels: set[str]) -> None:
    assert {form.replace("\\", "") for form in le(bound).split("|")} == labels


def test_words_of_others_are_not_expanded_as_a_template() -> None:
    assert literal("{{ x }}") == '{{ "{{" }} x }}'


def test_hits_of_the_prefix_cache_where_hits_and_misses_are_counted() -> None:
    expression = queries(deployment(engine=LLAMACPP)).prefix_hits()
    assert expression is not None
    assert "prompt_tokens_cached_total" in expression
    assert "(sum" in expression
