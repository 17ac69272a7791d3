"""A gate's verdict as people and CI read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from llmopt.gate.blocks import Block
from llmopt.gate.design import make_design
from llmopt.gate.judge import judge
from llmopt.gate.thresholds import parse_thresholds
from llmopt.pipeline.gate_document import document
from llmopt.pipeline.gate_question import Question, Verdict
from llmopt.report import gate as report
from llmopt.report.page import page
from llmopt.report.page_gate import gate_parts
from tests.unit.gate.blocks import blocks, reading

QUESTION = Question(thresholds=parse_thresholds(["tpot_p50:2%:3%", "ttft_p50:2%:3%"]), quality=())


def found(measured: list[Block], *, passes: bool = False, **rest: Any) -> dict[str, Any]:
    design = make_design(len(measured), 0.99, 0)
    judgement = judge(measured, design, QUESTION.thresholds, ended=True)
    assert judgement is not None
    verdict = Verdict(
        base="one", candidate="other", judgement=judgement, differences=(), design=design, seconds=12.0, runs=((), ()), **rest
    )  # fmt: skip
    return document([verdict], QUESTION, inconclusive_passes=passes)


def test_the_first_line_is_the_verdict_with_its_figures() -> None:
    words = found(blocks(8, slower=0.06))["words"]
    assert words.startswith("REGRESSION: tpot_p50 6.0% worse [")


@pytest.mark.parametrize(("slower", "noise", "status"), [(0.06, 0.002, 3), (0.0, 0.002, 0), (0.0, 0.06, 4)])
def test_the_exit_status_is_that_of_the_verdict(slower: float, noise: float, status: int) -> None:
    assert found(blocks(8, slower, noise))["exit_status"] == status


def test_what_is_inconclusive_may_pass_where_somebody_says_so() -> None:
    document = found(blocks(8, noise=0.06), passes=True)
    assert (document["status"], document["exit_status"]) == ("inconclusive", 0)
    assert "--on-inconclusive pass" in document["words"]


def test_inconclusive_says_what_would_be_found_and_how_many_blocks_decide() -> None:
    document = found(blocks(8, noise=0.06))
    assert "--rounds" in document["words"]
    assert any("four of five gates" in note for note in document["cases"][0]["notes"])


def test_what_the_bad_runs_of_the_base_would_explain_says_so_and_names_no_number_of_blocks() -> None:
    bare = reading(metrics={"ttft_s": {"p50": 0.05}})
    lost = [replace(b, base=(bare, bare)) if b.number > 1 else b for b in blocks(8, slower=0.5)]
    document = found(lost)
    assert "which may be its bad ones" in document["words"]
    assert "would decide" not in document["words"]
    assert document["cases"][0]["metrics"][0]["withheld"]


def test_a_loss_that_could_be_found_is_no_figure_without_end() -> None:
    notes = found(blocks(2, noise=0.06))["cases"][0]["notes"]
    assert [note for note in notes if "too few" in note]
    assert not [note for note in notes if "find a loss" in note]


@pytest.mark.parametrize(("confidence", "words"), [(0.9999, "99.99 %"), (0.99, "99 %"), (0.999999, "99.9999 %")])
def test_no_digit_of_the_confidence_is_lost(confidence: float, words: str) -> None:
    document = found(blocks(8)) | {"confidence": confidence}
    assert f"confidence {words}," in report.markdown(document)
    assert f"Confidence {words};" in gate_parts(document, {})["notes"][0]


def test_a_change_has_the_direction_of_its_metric() -> None:
    row = found(blocks(8, slower=0.06))["cases"][0]["metrics"][0]
    assert row["low"] < row["change"] < row["high"]
    assert row["change"] == pytest.approx(0.06, abs=0.003)
    assert len(row["by_block"]) == 8


def test_the_cause_is_told_where_the_pattern_says_it() -> None:
    assert any("decoding became slower" in words for words in found(blocks(8, slower=0.06))["cases"][0]["causes"])


def test_junit_has_a_case_for_every_row_and_fails_those_that_lost() -> None:
    suite = ElementTree.fromstring(report.junit(found(blocks(8, slower=0.06))))[0]
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["verdict", "tpot_p50"]
    assert int(suite.get("tests") or 0) == len(suite)


def test_junit_skips_what_is_inconclusive_and_may_pass() -> None:
    suite = ElementTree.fromstring(report.junit(found(blocks(8, noise=0.06), passes=True)))[0]
    assert int(suite.get("skipped") or 0) == 3


def test_junit_fails_where_the_reason_has_no_row() -> None:
    document = found(blocks(8))
    document |= {"status": "inconclusive", "exit_status": 4}
    document["cases"][0] |= {"status": "inconclusive", "words": "version differs"}
    suite = ElementTree.fromstring(report.junit(document))[0]
    assert suite.get("failures") == "1"
    failure = suite[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "inconclusive: version differs"


def test_junit_is_xml_whatever_a_side_is_called() -> None:
    document = found(blocks(8))
    document["cases"][0]["base"] = "one\x1b[31m"
    assert "one\N{REPLACEMENT CHARACTER}[31m" in (ElementTree.fromstring(report.junit(document))[0].get("name") or "")


def test_markdown_has_the_verdict_and_a_row_for_each_metric() -> None:
    text = report.markdown(found(blocks(8, slower=0.06)))
    assert text.startswith("# llmopt gate\n\n**✗ REGRESSION")
    assert sum(line.startswith("| t") for line in text.splitlines()) == 2


def test_the_page_draws_every_block() -> None:
    text = page(found(blocks(8, slower=0.06))).decode()
    assert "Has it become worse?" in text
    assert text.count('"block": 8') + text.count('"block":8') == 2


def test_cases_share_the_error_of_the_gate() -> None:
    assert QUESTION.shared_by(1).confidence == pytest.approx(0.99)
    assert QUESTION.shared_by(5).confidence == pytest.approx(0.998)
