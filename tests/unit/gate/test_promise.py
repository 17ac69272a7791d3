"""An endpoint against what was promised: SLOs by its own runs, figures with the noise of two sessions between them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.gate.decide import decide
from llmopt.gate.promise import Promised, default_thresholds, judge_slo, sample
from llmopt.gate.thresholds import parse_threshold
from llmopt.gate.unpaired import SessionNoise

NOISE = SessionNoise(spread=0.05, freedom=30.0, source="assumed")
TTFT = parse_threshold("ttft_p50:20%:30%")
RATE = parse_threshold("requests_per_s:20%:30%")


def decision(promised: float, values: list[float], threshold=TTFT) -> str:
    found = sample(Promised(value=promised), values, threshold, NOISE)
    [change] = decide({threshold.name: found}, {threshold.name: (promised, values[0])}, [threshold], 0.05)
    return change.decision


def test_what_was_promised_passes() -> None:
    assert decision(0.1, [0.101, 0.099, 0.1, 0.1, 0.1]) in ("equivalent", "not worse")


def test_half_the_throughput_is_a_regression() -> None:
    assert decision(10.0, [5.0, 5.1, 4.9, 5.0, 5.0], RATE) == "regression"


def test_a_tenth_more_is_not_told_with_the_noise_of_two_sessions() -> None:
    assert decision(0.1, [0.11, 0.112, 0.108, 0.11, 0.11]) == "inconclusive"


def test_a_promise_with_a_wide_interval_says_less() -> None:
    sharp = sample(Promised(value=1.0, low=0.99, high=1.01), [1.0, 1.0], TTFT, NOISE)
    vague = sample(Promised(value=1.0, low=0.5, high=2.0), [1.0, 1.0], TTFT, NOISE)
    assert vague.error > 3 * sharp.error


def test_one_run_has_the_noise_between_sessions_all_the_same() -> None:
    assert sample(Promised(value=1.0), [1.0], TTFT, NOISE).error == pytest.approx(math.sqrt(2) * 0.05)


def test_nothing_measured_is_no_sample() -> None:
    with pytest.raises(ValueError, match="nothing"):
        sample(Promised(value=1.0), [], TTFT, NOISE)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.floats(0.01, 10))
def test_worse_is_above_zero_in_both_directions(values: list[float], promised: float) -> None:
    later = sample(Promised(value=promised), values, TTFT, NOISE).mean
    fewer = sample(Promised(value=promised), values, RATE, NOISE).mean
    assert later == pytest.approx(-fewer)


def test_an_slo_is_kept_where_all_of_the_interval_is_below() -> None:
    found = judge_slo([0.08, 0.081, 0.079], 0.1, better="lower", error=0.05)
    assert found.status == "kept"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.08 < found.high < 0.1


def test_an_slo_is_missed_where_all_of_it_is_above() -> None:
    assert judge_slo([0.12, 0.121, 0.119], 0.1, better="lower", error=0.05).status == "missed"


def test_between_them_it_cannot_be_told() -> None:
    assert judge_slo([0.09, 0.11, 0.1], 0.1, better="lower", error=0.05).status == "unclear"


def test_two_runs_at_a_high_confidence_have_an_interval_that_can_be_printed() -> None:
    found = judge_slo([0.09, 0.11], 0.1, better="lower", error=1e-6)
    assert (found.status, found.low, found.high) == ("unclear", pytest.approx(0.0001), pytest.approx(100))


def test_more_is_better_turns_it_round() -> None:
    assert judge_slo([30.0, 31.0, 30.5], 20.0, better="higher", error=0.05).status == "kept"


def test_failures_beyond_the_share_miss_an_slo() -> None:
    assert judge_slo([0.01, math.inf], 0.1, better="lower", error=0.05).status == "missed"


@pytest.mark.parametrize("values", [[0.01], [0.01, None], []])
def test_too_little_is_never_kept(values: list[float | None]) -> None:
    found = judge_slo(values, 0.1, better="lower", error=0.05)
    assert found.status == "unclear"
    assert found.why


def test_defaults_can_let_something_pass_with_the_noise_that_is_assumed() -> None:
    for threshold in default_thresholds():
        found = sample(Promised(value=1.0), [1.0] * 5, threshold, NOISE)
        assert found.bound(0.05) < threshold.as_log(threshold.tolerate)
