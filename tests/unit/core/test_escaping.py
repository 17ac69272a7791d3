import csv
import io
import json

import pytest
from rich.console import Console

from llmopt.core.domain import Goal
from llmopt.core.escaping import markdown_text, one_line, spreadsheet_text, visible
from llmopt.recommend.candidates import comparable
from llmopt.recommend.rank import recommend
from llmopt.report.csv_table import csv_of
from llmopt.report.document import ranking_document
from llmopt.report.markdown import ranking_markdown
from llmopt.report.progress import Reporter
from llmopt.report.terminal import print_ranking
from unit.make import run

HOSTILE = "q[/red]\x1b[2J\x1b]0;owned\x07<img src=http://a.b/c>![p](http://a.b/p)\u061c\u202e`x` <script>*b*"


def document(name):
    found = comparable([run(name, throughput=t) for t in (100.0, 101.0, 102.0)])
    ranking = recommend(found.candidates, Goal())
    return ranking_document(
        Goal(), ranking.ranked, ranking.rejected, machine=found.machine, workload=found.workload, base=name, left_out={}
    )


def terminal(name):
    out = io.StringIO()
    print_ranking(document(name), Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize("name", ["q[/red]", "q[red]", "[link=http://a.b]x"])
def test_markup_in_a_name_stays_text_in_every_cell(name):
    assert terminal(name).count(name) >= 2


def test_a_terminal_is_told_nothing_by_a_name():
    text = terminal(HOSTILE)
    assert not any(c in text for c in "\x1b\x07\u061c\u202e")


def test_markdown_shows_no_picture_and_no_html_of_a_name():
    text = ranking_markdown(document(HOSTILE))
    assert not any(part in text for part in ("<img", "<script", "![p](", "\x1b", "`x`", "*b*", "\u202e"))
    assert "&lt;img" in text


@pytest.mark.parametrize("text", ["ttft_p95<=90ms", "kl<0.1", "100 [95.0, 105] tok/s", "a & b", "2 < 3"])
def test_what_markdown_does_nothing_with_is_left_readable(text):
    assert markdown_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("[1](u)", "[1\\](u)"), ("[a][b]", "\\[a\\]\\[b]"), ("_x_", "\\_x\\_"), ("a|b", "a\\|b"), ("&lt;b", "&amp;lt;b")],
)
def test_links_and_emphasis_are_taken_apart(text, shown):
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    "text", ["www.evil.example", "https://evil.example/a", "@octocat", "a@b.example", "x#1", "~~x~~"]
)
def test_nothing_is_linked_struck_or_called(text):
    assert text not in markdown_text(text)
    assert markdown_text(text).replace("\u200b", "").replace("\\", "") == text


@pytest.mark.parametrize("text", ["=1+1", " =1+1", "\n=1+1", "\t\r=1+1", "\ufeff=1+1", "\uff1d1", "@x", "-1", "+1"])
def test_no_text_is_a_formula(text):
    assert not spreadsheet_text(text).startswith(("=", "\uff1d", "@", "-", "+"))


def test_a_formula_that_hides_behind_a_blank_is_none_in_the_table():
    (row,) = csv.DictReader(io.StringIO(csv_of(document(" =HYPERLINK(1)")).decode()))
    assert row["quantization"] == "'=HYPERLINK(1)"


def test_what_cannot_be_seen_is_seen_everywhere_in_a_document():
    found = json.dumps(visible({"\x1bk": ["\u061c", {"a": ("\x07",)}]}), ensure_ascii=False)
    assert found == '{"\ufffdk": ["\ufffd", {"a": ["\ufffd"]}]}'
    assert one_line("a\r\nb\u2028c") == "a b c"


def test_progress_obeys_no_name_either(capsys):
    Reporter().say("skipped \x1b[2J.json")
    assert "\x1b" not in capsys.readouterr().err
