"""What factors leave, learnt from configurations that are alike."""

from __future__ import annotations

import math

import pytest

from llmopt.estimate.neighbours import MOST, Neighbour, Place, corrected, left_at, weight
from llmopt.estimate.roofline import Times

HERE = Place(engine="llamacpp", kind="cpu", layout="q8_0", at=(0.0, 4.0, 18.0))


def place(**changes: object) -> Place:
    return Place(**(vars(HERE) | changes))  # type: ignore[arg-type]


def off(at: Place, value: float) -> Neighbour:
    return Neighbour(place=at, left={"itl_s": value})


def test_nobody_near_leaves_the_prediction_as_it_is() -> None:
    assert left_at(HERE, [], "itl_s") == 0
    assert left_at(HERE, [off(place(at=(9.0, 4.0, 18.0)), 0.3)], "itl_s") == pytest.approx(0, abs=1e-9)


def test_a_neighbour_moves_it_most_where_it_is() -> None:
    found = [left_at(place(at=(x, 4.0, 18.0)), [off(HERE, 0.3)], "itl_s") for x in (0.0, 0.7, 1.4)]
    assert found == sorted(found, reverse=True)
    assert 0.2 < found[0] < 0.3


def test_another_layout_counts_less_and_another_engine_not_at_all() -> None:
    assert 0 < weight(HERE, place(layout="q4_k_m")) < weight(HERE, HERE) == 1
    assert weight(HERE, place(engine="vllm")) == weight(HERE, place(kind="gpu")) == 0


def test_a_wild_neighbour_is_not_followed_far() -> None:
    assert left_at(HERE, [off(HERE, 5.0)] * 9, "itl_s") == MOST


def test_a_request_takes_as_much_longer_as_fewer_are_done() -> None:
    times = Times(
        prefill_s=0.1, step_s=0.01, ttft_s=0.1, itl_s=0.01, e2e_s=1.0, output_tps=100.0, requests_per_s=2.0, busy=0.1,
        bound="bandwidth",
    )  # fmt: skip
    near = [Neighbour(place=HERE, left={"itl_s": 0.0, "output_tps": -0.2})] * 50
    found = corrected(times, HERE, near)
    factor = math.exp(left_at(HERE, near, "output_tps"))
    assert found.output_tps == pytest.approx(100 * factor)
    assert found.requests_per_s == pytest.approx(2 * factor)
    assert found.e2e_s == pytest.approx(1 / factor)
    assert (found.ttft_s, found.itl_s) == (0.1, 0.01)
