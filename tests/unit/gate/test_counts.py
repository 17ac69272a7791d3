"""Failures, cut answers and token counts: what can fail a gate without a clock."""

from __future__ import annotations

import random
from dataclasses import replace
from math import comb

import pytest

from llmopt.core.domain import RequestTrace
from llmopt.gate.counts import Counts, compare, counts_of, fisher, total
from tests.unit.gate.blocks import GOOD


def outcomes(base: list[Counts], candidate: list[Counts]) -> dict[str, str]:
    return {row.name: row.outcome for row in compare(base, candidate, 0.01)}


def test_alike_sides_pass() -> None:
    assert set(outcomes([GOOD] * 5, [GOOD] * 5).values()) == {"pass"}


def test_failures_in_several_blocks_are_a_regression() -> None:
    failing = replace(GOOD, failed=6)
    assert outcomes([GOOD] * 5, [failing] * 5)["failed requests"] == "regression"


def test_all_requests_of_every_block_are_no_chance_however_few_the_base_has() -> None:
    dead = Counts(planned=60, failed=60)
    assert outcomes([GOOD], [dead] * 2)["failed requests"] == "regression"
    assert outcomes([GOOD], [dead])["failed requests"] == "inconclusive"


def test_failures_in_one_block_may_be_an_accident() -> None:
    assert outcomes([GOOD] * 5, [replace(GOOD, failed=30), *[GOOD] * 4])["failed requests"] == "inconclusive"


def test_as_many_failures_on_both_sides_pass() -> None:
    failing = [replace(GOOD, failed=6)] * 5
    assert outcomes(failing, failing)["failed requests"] == "pass"


def test_cut_answers_are_a_regression() -> None:
    assert outcomes([GOOD] * 5, [replace(GOOD, short=20)] * 5)["answers cut short"] == "regression"


@pytest.mark.parametrize("factor", [0.5, 4])
def test_prompts_of_another_length_are_another_work(factor: float) -> None:
    other = replace(GOOD, prompt_tokens=int(1920 * factor))
    assert outcomes([GOOD] * 5, [other] * 5)["prompt tokens of a request"] == "regression"


def test_answers_of_another_length_are_another_work() -> None:
    assert outcomes([GOOD] * 5, [replace(GOOD, output_tokens=480)] * 5)["output tokens of a request"] == "regression"


def test_answers_that_end_where_the_model_pleases_raise_no_alarm() -> None:
    alarms = 0
    for seed in range(300):
        draw = random.Random(seed)
        sides = [
            [replace(GOOD, output_tokens=round(sum(draw.expovariate(1 / 16) for _ in range(60)))) for _ in range(20)]
            for _ in range(2)
        ]
        alarms += any(
            outcomes(*(s[:look] for s in sides))["output tokens of a request"] == "regression"
            for look in (5, 8, 12, 16, 20)
        )
    assert alarms <= 6


def test_one_block_of_other_lengths_is_inconclusive() -> None:
    other = [replace(GOOD, output_tokens=480)]
    assert outcomes([GOOD], other)["output tokens of a request"] == "inconclusive"


def test_unknown_token_counts_are_no_row() -> None:
    assert "prompt tokens of a request" not in outcomes([replace(GOOD, prompt_tokens=None)] * 5, [GOOD] * 5)


ROW = "output tokens of a request"


def test_lengths_that_only_the_base_tells_are_no_pass() -> None:
    silent = replace(GOOD, output_tokens=None, short=None)
    assert outcomes([GOOD] * 5, [silent] * 5)[ROW] == "inconclusive"
    assert "answers cut short" not in outcomes([GOOD] * 5, [silent] * 5)
    assert ROW not in outcomes([silent] * 5, [silent] * 5)


def test_blocks_that_tell_lengths_are_compared() -> None:
    silent, half = replace(GOOD, output_tokens=None, short=None), replace(GOOD, output_tokens=480)
    assert outcomes([GOOD] * 6, [*[half] * 5, silent])[ROW] == "regression"
    assert outcomes([silent, *[GOOD] * 5], [GOOD] * 6)[ROW] == "pass"


def test_lengths_that_the_candidate_tells_less_often_are_no_pass_one_block_may_be_an_accident() -> None:
    silent = replace(GOOD, output_tokens=None, short=None)
    assert outcomes([GOOD] * 6, [silent, *[GOOD] * 5])[ROW] == "pass"
    assert outcomes([GOOD] * 6, [silent, silent, *[GOOD] * 4])[ROW] == "inconclusive"
    assert outcomes([silent, silent, *[GOOD] * 4], [silent, silent, *[GOOD] * 4])[ROW] == "pass"


def test_how_many_answers_were_cut_is_unknown_where_a_length_is() -> None:
    told, silent = (
        RequestTrace(
            index=0, planned_ns=0, requested_output_tokens=16, prompt_tokens_asked=32, sent_ns=1, output_tokens=n
        )
        for n in (8, None)
    )
    assert (counts_of([told]).short, counts_of([told, silent]).short) == (1, None)


def test_crashes_now_and_then_are_inconclusive_of_the_candidate_in_every_block_they_are_not() -> None:
    crash = Counts(crashes=1)
    name = "blocks in which the server died"
    assert outcomes([GOOD] * 5, [crash, crash, *[GOOD] * 3])[name] == "inconclusive"
    assert outcomes([GOOD] * 2, [crash] * 2)[name] == "regression"
    assert outcomes([crash, GOOD], [crash] * 2)[name] == "inconclusive"


def bursts(draw: random.Random) -> Counts:
    """Of two runs, each of which loses a fifth of its requests in one time of ten."""
    return replace(GOOD, planned=120, failed=sum(12 for _ in range(2) if draw.random() < 0.1))


def test_failures_in_bursts_on_both_sides_raise_no_alarm() -> None:
    alarms = 0
    for seed in range(300):
        draw = random.Random(seed)
        sides = [[bursts(draw) for _ in range(20)] for _ in range(2)]
        alarms += any(
            outcomes(*(s[:look] for s in sides))["failed requests"] == "regression" for look in (5, 8, 12, 16, 20)
        )
    assert alarms <= 6


def test_answers_of_no_tokens_at_all_are_another_work() -> None:
    assert outcomes([GOOD] * 5, [replace(GOOD, output_tokens=0)] * 5)["output tokens of a request"] == "regression"


def test_fisher_is_the_hypergeometric_tail() -> None:
    exact = sum(comb(20, k) * comb(20, 8 - k) for k in range(6, 9)) / comb(40, 8)
    assert fisher(2, 20, 6, 20) == pytest.approx(exact)


def test_counts_are_of_the_timelines() -> None:
    def trace(**rest: object) -> RequestTrace:
        return RequestTrace(**{"index": 0, "planned_ns": 0, "requested_output_tokens": 16, "prompt_tokens_asked": 32,
                               "sent_ns": 1, "prompt_tokens": 32, "output_tokens": 16} | rest)  # type: ignore[arg-type]  # fmt: skip

    found = counts_of(
        [trace(), trace(output_tokens=8), trace(error="http: 500"), trace(error="never: sent", sent_ns=None)]
    )
    assert found == Counts(
        planned=4, failed=2, dropped=1, short=1, errors={"http": 1, "never": 1}, prompt_tokens=64, output_tokens=24,
        requested_tokens=32,
    )  # fmt: skip


def test_a_sum_is_unknown_with_one_of_its_parts() -> None:
    assert total([GOOD, replace(GOOD, prompt_tokens=None)]).prompt_tokens is None


def test_answers_that_are_shorter_by_chance_or_not_are_no_pass() -> None:
    def of(lengths: list[int]) -> list[Counts]:
        return [replace(GOOD, output_tokens=60 * length) for length in lengths]

    assert outcomes(of([16, 17, 15, 16, 16]), of([14, 16, 13, 14, 13]))["output tokens of a request"] != "pass"
