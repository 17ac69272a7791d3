"""Replicas for a load, what is left of them when one is lost, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.errors import UsageError
from llmopt.deploy.capacity import at_rate, capacity
from llmopt.deploy.plan import Capacity, Figure, Slo
from unit.deploy.make import evidence, wishes

SLO = Slo(text="ttft_p95<500ms", metric="ttft", share=0.95, bound=0.5, measured=0.4)


def point(rate: float, ttft_p95: float | None, **fields: Any) -> dict[str, Any]:
    known = {"level": rate, "load": f"{rate} users", "status": "valid", "saturated": False}
    return known | {"metrics": {"requests_per_s": rate, "ttft_s": {"p95": ttft_p95}}} | fields


def of(
    curve: tuple[dict[str, Any], ...] = (), rate: Figure | None = None, load_s: float | None = 60.0, **asked: Any
) -> Capacity:
    figures = {"requests_per_s": rate or Figure(value=5.0, low=4.8, high=5.2, unit="rps")}
    measured = evidence(curve=curve, slos=(SLO,), figures=figures, load_s=load_s)
    return capacity(measured, wishes(**{"replicas": None} | asked))


def test_a_load_takes_as_many_as_it_needs_and_one():
    found = of(load_rps=9.6)
    assert (found.replicas, found.spare) == (3, 1)


def test_a_little_more_load_takes_one_more():
    assert of(load_rps=9.61).replicas == 4


@given(st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_with_one_lost_the_load_still_fits(load, each):
    found = of(rate=Figure(value=each), load_rps=load)
    assert found.after_one_lost_rps >= load * (1 - 1e-8)


def test_the_lower_end_of_the_measured_rate_counts():
    assert of(replicas=2).per_replica_rps == 4.8


def test_a_rate_without_an_interval_counts_as_it_is():
    assert of(rate=Figure(value=5.0), replicas=2).per_replica_rps == 5.0


def test_a_load_cannot_be_shared_out_where_no_rate_was_measured():
    with pytest.raises(UsageError, match="not measured"):
        of(rate=Figure(value=None), load_rps=1)


def test_what_was_not_measured_is_unknown_and_not_nothing():
    found = of(rate=Figure(value=None), replicas=3)
    assert (found.per_replica_rps, found.total_rps, found.after_one_lost_rps) == (None, None, None)


def test_a_month_has_730_hours_of_every_replica():
    found = of(replicas=3, price_per_hour=2.0, spot_price_per_hour=0.5)
    assert (found.per_month, found.per_month_spot) == (4380.0, 1095.0)


def test_without_a_price_there_is_no_cost():
    assert of(replicas=3).per_month is None


def test_spot_says_what_an_interruption_does():
    assert "an interruption takes one replica away" in of(replicas=3, spot_price_per_hour=0.5).words[-1]


def test_one_replica_alone_has_nothing_left():
    assert any("nothing is left when it is lost" in words for words in of(replicas=1).words)


def test_every_measured_figure_says_so():
    assert "(measured, 5 runs)" in of(replicas=2).words[0]


# --- the SLO with one lost ------------------------------------------------------------------------------------------------

CURVE = (point(2.0, 0.1), point(4.0, 0.3), point(6.0, 0.7))


def read(rate: float, curve: tuple[dict[str, Any], ...] = CURVE) -> float | None:
    return at_rate(evidence(curve=curve), SLO, rate).value


def test_between_two_points_it_is_interpolated_and_named_so():
    found = at_rate(evidence(curve=CURVE), SLO, 5.0)
    assert found.value == pytest.approx(0.5)
    assert found.how.startswith("interpolated between 4 and 6 requests/s")


def test_below_the_lowest_point_it_is_no_better_than_there():
    assert read(0.5) == 0.1


def test_beyond_the_highest_point_nothing_is_known():
    assert read(6.01) is None


def test_without_a_curve_nothing_is_known():
    assert read(1.0, ()) is None


def test_points_past_saturation_are_no_function_of_the_rate():
    assert read(5.0, (*CURVE[:2], point(5.5, 9.0, saturated=True))) is None


def test_invalid_points_do_not_count():
    assert read(3.0, (CURVE[0], point(4.0, 0.1, status="invalid"))) is None


def test_a_closed_loop_is_named_as_one():
    assert "an open stream of that rate waits longer" in at_rate(evidence(curve=CURVE), SLO, 5.0).how


@given(st.floats(2.0, 6.0), st.floats(2.0, 6.0))
def test_on_a_rising_curve_more_load_is_never_faster(one, other):
    low, high = sorted((one, other))
    assert read(low) <= read(high) + 1e-12


def test_an_slo_that_holds_with_one_lost_says_so():
    words = of(CURVE, load_rps=4.0).words
    assert any("ttft_p95<500ms holds: 300.0 ms" in line for line in words), words


def test_an_slo_that_is_missed_with_one_lost_says_so():
    assert any("ttft_p95<500ms is missed" in line for line in of(CURVE, replicas=2, rate=Figure(value=3.0)).words)


def test_replicas_of_one_machine_share_it():
    words = capacity(evidence(), wishes(replicas=2), shared_machine=True).words
    assert any("share one" in line for line in words)
