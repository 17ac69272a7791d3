"""What is gated, as people write it."""

from __future__ import annotations

import math

import pytest

from llmopt.core.errors import UsageError
from llmopt.gate.thresholds import parse_quality, parse_thresholds


def test_one_number_blocks_and_half_of_it_is_tolerated() -> None:
    (one,) = parse_thresholds(["ttft_p95:5%"])
    assert (one.name, one.tolerate, one.block) == ("ttft_p95", 0.025, 0.05)


def test_two_numbers_are_tolerated_and_blocks() -> None:
    (one,) = parse_thresholds(["output_tps:1%:0.04"])
    assert (one.tolerate, one.block) == (0.01, 0.04)


def test_a_loss_has_the_direction_of_its_metric() -> None:
    latency, rate = parse_thresholds(["tpot_p50:5%", "output_tps:5%"])
    assert latency.worsening(1.0, 1.05) == pytest.approx(latency.as_log(0.05))
    assert rate.worsening(1.0, 0.95) == pytest.approx(rate.as_log(0.05))
    assert rate.change(rate.as_log(0.05)) == pytest.approx(-0.05)


def test_without_any_the_headline_metrics_are_gated() -> None:
    found = parse_thresholds([])
    assert found[0].name == "output_tps"
    assert all(one.default for one in found)


@pytest.mark.parametrize(
    "text",
    ["ttft_p95:", "ttft_p95:x", "ttft_p95:0%", "ttft_p95:-5%", "ttft_p95:100%", "ttft_p95:nan", "ttft_p95:5%:2%", ":5%",
     "ttft:5%", "tftt_p95:5%", "error_rate:5%", "kl:5%", "ttft_p95:1%:2%:3%"],
)  # fmt: skip
def test_what_is_no_threshold_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_thresholds([text])
    assert caught.value.hint


def test_a_metric_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_thresholds(["tpot_p50:5%", "tpot_p50:3%"])


def test_quality_is_a_difference_and_perplexity_a_ratio() -> None:
    kl, perplexity = parse_quality(["kl:0.01", "perplexity:1%"])
    assert (kl.absolute, kl.block) == (True, 0.01)
    assert (perplexity.absolute, perplexity.as_log(perplexity.block)) == (False, pytest.approx(math.log(1.01)))


@pytest.mark.parametrize("text", ["kl", "kl:", "kl:-1", "kl:inf", "mmlu:0.1", "ttft_p50:1%"])
def test_what_is_no_quality_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_quality([text])
