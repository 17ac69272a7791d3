"""One change at a time: what a step gave, how sure that is, and what could not be measured."""

import pytest

from llmopt.recommend.steps import Step, price, steps_document
from llmopt.report.steps import lines, steps_markdown
from unit.make import run


def step(name, *throughputs):
    return Step(
        name=name, runs=tuple(run(throughput=t, started_at=f"2025-01-{d:02}") for d, t in enumerate(throughputs, 1))
    )


def rows(*steps, **options):
    return steps_document("r", steps, **options)["steps"]


def test_a_change_is_the_ratio_of_medians_to_the_step_before():
    found = rows(step("a", 100, 110, 90), step("b", 200, 220, 180), step("c", 100, 100, 100))
    assert found[1]["change"]["output_tps"]["ratio"] == 2.0
    assert found[2]["change"]["output_tps"]["ratio"] == 0.5
    assert found[2]["since_start"]["output_tps"]["ratio"] == 1.0


def test_the_interval_holds_the_ratio_and_leaves_out_one_for_a_clear_change():
    change = rows(step("a", 100, 104, 97), step("b", 200, 204, 197))[1]["change"]["output_tps"]
    assert 1 < change["low"] <= change["ratio"] <= change["high"]


def test_two_runs_have_no_interval():
    change = rows(step("a", 100, 104), step("b", 200, 204))[1]["change"]["output_tps"]
    assert (change["low"], change["high"]) == (None, None)


def test_a_step_that_failed_is_stepped_over():
    found = rows(step("a", 100), Step(name="b", failure="the engine died"), step("c", 300))
    assert found[1]["failure"] == "the engine died"
    assert "metrics" not in found[1]
    assert found[2]["change"]["output_tps"]["ratio"] == 3.0


def test_the_first_step_is_a_change_of_nothing():
    assert rows(step("a", 100))[0]["change"] == {}


def test_nothing_ran():
    document = steps_document("r", [Step(name="a", failure="no engine")])
    assert "left out: no engine" in steps_markdown(document)


def test_price_of_a_million_tokens():
    assert price(1000.0, 3.6) == pytest.approx(1.0)  # 3.6 an hour is a thousandth a second, for a thousand tokens
    assert price(None, 3.6) is None
    assert price(1000.0, None) is None


def test_the_table_shows_a_sure_change_an_unsure_one_and_the_price():
    document = steps_document(
        "r", [step("a", 100, 101, 102), step("b", 200, 202, 204), step("c", 190, 205, 220)], price_per_hour=3.6
    )
    head, _, second, third = lines(document)
    place = head.index("throughput")
    assert second[place] == "202 tok/s (×2.00)"
    assert "≈1.01" in third[place]
    assert second[head.index("per 1M tokens")] == "4.95"
    assert len({len(row) for row in lines(document)}) == 1


def test_bars_grow_with_throughput():
    _, first, second = lines(steps_document("r", [step("a", 50), step("b", 100)]))
    assert second[-1].count("█") == 2 * first[-1].count("█") == 24
