"""One change at a time: what a step gave, how sure that is, and what could not be measured."""

import pytest

from llmopt.core.domain import Doubt, Verdict
from llmopt.recommend.steps import Step, price, steps_document
from llmopt.report.steps import lines, print_steps, steps_markdown
from unit.make import metrics, run


def step(name, *throughputs):
    return Step(
        name=name, runs=tuple(run(throughput=t, started_at=f"2025-01-{d:02}") for d, t in enumerate(throughputs, 1))
    )


def rows(*steps, **options):
    return steps_document("r", steps, **options)["steps"]


def test_a_change_is_the_ratio_to_the_step_before():
    found = rows(step("a", 100, 110, 90), step("b", 200, 220, 180), step("c", 50, 55, 45))
    assert found[1]["change"]["output_tps"]["ratio"] == pytest.approx(2.0)
    assert found[2]["change"]["output_tps"]["ratio"] == pytest.approx(0.25)
    assert found[2]["since_start"]["output_tps"]["ratio"] == pytest.approx(0.5)


def test_a_ratio_lies_in_its_interval_whatever_the_median_says():
    change = rows(step("a", 100, 100, 100), step("b", 100, 100, 101), step("c", 200, 200, 200, 100, 100, 100, 100))
    unlike = change[2]["change"]["output_tps"]
    assert unlike["low"] <= unlike["ratio"] < unlike["high"]
    assert unlike["ratio"] == 1  # of the medians, which are what is shown


def test_the_ratio_of_highest_peaks_has_no_interval():
    peaks = [Step(name="a", runs=tuple(run(metrics=metrics(memory=m)) for m in (100 + i, 104, 800))) for i in (0, 100)]
    change = rows(*peaks)[1]["change"]["peak_rss_bytes"]
    assert change == {"ratio": 1.0, "low": None, "high": None}


def test_the_interval_holds_the_ratio_and_leaves_out_one_for_a_clear_change():
    change = rows(step("a", 100, 104, 97), step("b", 200, 204, 197))[1]["change"]["output_tps"]
    assert 1 < change["low"] <= change["ratio"] <= change["high"]


def test_one_run_a_side_has_no_interval():
    change = rows(step("a", 100), step("b", 200))[1]["change"]["output_tps"]
    assert (change["low"], change["high"]) == (None, None)


def test_a_ratio_is_of_the_figures_that_are_shown():
    """Memory is the highest peak of the newest engine version's runs, on both sides."""
    old = run(throughput=1.0, started_at="2024-01-01", backend={"name": "hf", "version": "1"})
    before = Step(name="a", runs=(old, *(run(metrics=metrics(memory=m), started_at="2025-01-01") for m in (100, 400))))
    after = Step(name="b", runs=tuple(run(metrics=metrics(memory=m), started_at="2025-01-01") for m in (200, 200)))
    found = rows(before, after)
    assert [row["metrics"]["peak_rss_bytes"] for row in found] == [400, 200]
    assert found[1]["change"]["peak_rss_bytes"]["ratio"] == 0.5
    assert found[0]["runs"] == 2


def test_an_invalid_step_is_compared_with_nothing():
    broken = Verdict.of((Doubt(code="errors", severity="invalid", message="it failed", remedy="r"),))
    document = steps_document("r", [step("a", 100), Step(name="b", runs=(run(verdict=broken),)), step("c", 300)])
    _, second, third = document["steps"]
    assert second["change"] == {}
    assert third["change"]["output_tps"]["ratio"] == 3.0
    assert lines(document)[2][-1] == "invalid"


def test_a_step_that_failed_in_its_second_run_keeps_the_first():
    document = steps_document("r", [Step(name="a", runs=(run(),), failure="it died")])
    assert document["steps"][0]["metrics"]["output_tps"]
    assert "a: it died" in steps_markdown(document)


def test_names_are_no_markup(capsys):
    print_steps(steps_document("r", [step("with [/x] and | a [bf16]", 100)]))
    assert "with [/x] and | a [bf16]" in capsys.readouterr().out
    assert r"\|" in steps_markdown(steps_document("r", [step("a | b", 100)]))


def test_the_report_is_of_the_recipe():
    document = steps_document("progressive", [step("a", 100), step("b", 200)])
    assert steps_markdown(document).startswith("# Steps: progressive\n")


def test_a_narrow_terminal_keeps_whole_words(capsys, monkeypatch):
    from rich.console import Console

    from llmopt.report import terminal

    monkeypatch.setattr(terminal, "stdout_console", lambda: Console(highlight=False, width=110))
    print_steps(steps_document("r", [step("without", 100, 104, 108), step("prefix caching", 250, 252, 254)]))
    told = capsys.readouterr().out
    assert "prefix caching" in told
    assert "252 tok/s (×2.42)" in told


def test_a_step_that_failed_is_stepped_over():
    found = rows(step("a", 100), Step(name="b", failure="the engine died"), step("c", 300))
    assert found[1]["failure"] == "the engine died"
    assert "metrics" not in found[1]
    assert found[2]["change"]["output_tps"]["ratio"] == 3.0


def test_the_first_step_is_a_change_of_nothing():
    assert rows(step("a", 100))[0]["change"] == {}


def test_nothing_ran():
    document = steps_document("r", [Step(name="a", failure="no engine")])
    assert "| a | – | – | – | – | – | not measured |" in steps_markdown(document)
    assert "a: no engine" in steps_markdown(document)


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
