"""What holds for any blocks: laws of the verdict."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts, compare, welch
from llmopt.gate.design import make_design
from llmopt.gate.judge import Judgement, judge
from llmopt.gate.thresholds import parse_thresholds
from tests.unit.gate.blocks import GOOD

THRESHOLDS = parse_thresholds(["tpot_p50:2%:3%", "output_tps:2%:3%"])
LAW = settings(deadline=None, max_examples=40)  # a busy machine is slow, and no law is broken by it
losses = st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), min_size=5, max_size=12)
counted = st.lists(st.integers(0, 60), min_size=2, max_size=8)


def made(pairs: list[tuple[float, float]], slower: float = 0.0, scale: float = 1.0) -> list[Block]:
    """One run a side in each block; numbers are logarithms of how slow base and candidate are."""

    def reading(slow: float, name: str) -> Reading:
        metrics = {"tpot_s": {"p50": scale * math.exp(slow)}, "output_tps": math.exp(-slow) / scale}
        return Reading(run_id=name, metrics=metrics, counts=GOOD)

    return [
        Block(number=n, base=(reading(a, f"a{n}"),), candidate=(reading(b + slower, f"b{n}"),))
        for n, (a, b) in enumerate(pairs)
    ]


def judged(blocks: list[Block]) -> Judgement:
    found = judge(blocks, make_design(len(blocks), 0.99, 0), THRESHOLDS, ended=True)
    assert found is not None
    return found


@LAW
@given(losses)
def test_of_two_sides_at_most_one_is_worse(pairs: list[tuple[float, float]]) -> None:
    there, back = judged(made(pairs)), judged(made([(b, a) for a, b in pairs]))
    assert not there.status == back.status == "regression"
    assert math.isclose(there.changes[0].loss, -back.changes[0].loss, abs_tol=1e-9)


@LAW
@given(losses, st.floats(0.1, 10))
def test_a_faster_machine_changes_no_verdict(pairs: list[tuple[float, float]], scale: float) -> None:
    assert judged(made(pairs)).status == judged(made(pairs, scale=scale)).status


@LAW
@given(losses, st.floats(0, 0.5))
def test_what_is_slower_still_does_not_pass_more_easily(pairs: list[tuple[float, float]], slower: float) -> None:
    order = ["pass", "inconclusive", "regression"]
    before, after = judged(made(pairs)), judged(made(pairs, slower=slower))
    assert order.index(after.status) >= order.index(before.status)


@LAW
@given(losses, st.randoms())
def test_the_order_of_blocks_is_no_evidence(pairs: list[tuple[float, float]], draw: object) -> None:
    other = list(pairs)
    draw.shuffle(other)  # type: ignore[attr-defined]
    there, back = judged(made(pairs)), judged(made(other))
    assert math.isclose(there.changes[0].low, back.changes[0].low, rel_tol=1e-6, abs_tol=1e-9)


@LAW
@given(losses)
def test_the_same_figures_on_both_sides_never_fail(pairs: list[tuple[float, float]]) -> None:
    assert judged(made([(a, a) for a, _ in pairs])).status == "pass"


@LAW
@given(counted)
def test_as_many_failures_are_never_a_regression(failed: list[int]) -> None:
    side = [replace(GOOD, failed=n) for n in failed]
    assert all(row.outcome != "regression" for row in compare(side, side, 0.01) if row.unit == "share")


@LAW
@given(st.integers(2, 8), st.integers(1, 60))
def test_failures_of_every_block_of_the_candidate_alone_are_one(blocks: int, failed: int) -> None:
    candidate = [Counts(planned=60, failed=failed)] * blocks
    row = compare([Counts(planned=60)] * blocks, candidate, 0.01)[0]
    enough = failed * blocks >= 9  # fewer may be chance
    assert row.outcome == "regression" or not enough


@LAW
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_of_two_means_one_is_not_above_the_other_both_ways(base: list[float], candidate: list[float]) -> None:
    assert math.isclose(welch(base, candidate) + welch(candidate, base), 1, abs_tol=1e-9)
