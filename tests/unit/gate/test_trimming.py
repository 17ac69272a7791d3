"""What is left out of the candidate's runs where the base lost figures."""

from __future__ import annotations

import math

import pytest

from llmopt.gate.blocks import Block, Reading
from llmopt.gate.thresholds import parse_threshold
from llmopt.gate.trimming import best, best_blocks, kept_share
from tests.unit.gate.blocks import reading

TPS = parse_threshold("output_tps:3%")
LOST = Reading(run_id="lost", metrics={})


def rates(*values: float) -> tuple[Reading, ...]:
    return tuple(reading(tps=value) for value in values)


@pytest.mark.parametrize(
    ("runs", "share"), [(16, 0.75 - math.sqrt(0.1875 / 8)), (4, 0.75 - math.sqrt(0.1875 * 5 / 16))]
)
def test_the_share_that_the_base_lost_is_left_out_and_a_standard_error_of_it(runs: int, share: float) -> None:
    base = [*rates(*[400.0] * 12), *[LOST] * 4]
    assert kept_share(base, rates(*[400.0] * runs), TPS) == pytest.approx(share)


def test_what_the_candidate_lost_changes_no_share_and_a_base_without_a_gap_leaves_out_nothing() -> None:
    base, candidate = rates(*[400.0] * 8), [*rates(*[400.0] * 4), *[LOST] * 4]
    assert kept_share(base, candidate, TPS) == 1
    assert kept_share(candidate, candidate, TPS) == kept_share(candidate, base, TPS) < 0.5


def test_the_best_of_a_rate_are_the_highest() -> None:
    assert best(rates(300, 500, 400, 100), TPS, 0.5) == list(rates(500, 400))


def test_the_worst_runs_are_those_beside_the_base_of_their_own_block() -> None:
    """The second block is slow on both sides, and its candidate the best of all."""
    quick = Block(number=0, base=(*rates(400), LOST), candidate=rates(400, 300))
    slow = Block(number=1, base=rates(200, 200), candidate=rates(200, 210))
    assert best_blocks([quick, slow], TPS) == [Block(number=1, base=slow.base, candidate=rates(210))]
