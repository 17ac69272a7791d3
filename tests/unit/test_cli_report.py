"""``llmopt report`` as it is typed: forms, refusals, and what it says of folders and documents that hold nothing."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.cli.shell import fail
from llmopt.core.store import save_run
from llmopt.report.csv_table import csv_of
from unit.make import QUALITY, closed_loop, curve


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for name in ("=cmd()", "plain"):
        for run in curve(name, u1=(100.0, 0.1), u4=(300.0, 0.2)):
            save_run(folder, replace(run, run_id=run.run_id.replace("=cmd()", "x")), closed_loop())
    return folder


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_csv_has_a_row_for_each_configuration_and_load(results, tmp_path):
    file = tmp_path / "report.csv"
    assert report(results, "--csv", file).exit_code == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert sorted((row["quantization"], row["load"]) for row in rows) == [
        ("'=cmd()", "1 user"), ("'=cmd()", "4 users"), ("plain", "1 user"), ("plain", "4 users")]  # fmt: skip
    assert {float(row["ttft_s_p50"]) for row in rows} == {0.1, 0.2}
    assert sum(row["chosen"] == "true" for row in rows) == 2


def test_what_is_not_known_is_an_empty_cell(results, tmp_path):
    file = tmp_path / "report.csv"
    report(results, "--csv", file)
    assert {row["peak_vram_bytes"] for row in csv.DictReader(file.read_text().splitlines())} == {""}


def test_the_page_has_the_stored_timelines(results, tmp_path):
    pytest.importorskip("vl_convert")
    file = tmp_path / "report.html"
    assert report(results, "--html", file).exit_code == 0
    assert "64 of 64 requests drawn" in file.read_text()


def test_markdown_and_the_terminal_say_the_same_goal(results, tmp_path):
    file = tmp_path / "report.md"
    assert report(results, "--md", file).exit_code == 0
    assert "Goal: best throughput" in file.read_text()
    assert "goal: best throughput" in report(results).stdout


def test_json_prints_the_document_and_nothing_else(results, tmp_path):
    done = report(results, "--json", "--csv", tmp_path / "report.csv")
    assert json.loads(done.stdout)["kind"] == "ranking"


def test_a_saved_document_is_drawn_again(results, tmp_path):
    saved = tmp_path / "ranking.json"
    saved.write_text(report(results, "--json").stdout)
    file = tmp_path / "report.csv"
    assert report(saved, "--csv", file).exit_code == 0
    assert file.read_bytes() == csv_of(json.loads(saved.read_text()))


def test_the_ranking_inside_a_tune_document_is_drawn(results, tmp_path):
    saved = tmp_path / "tune.json"
    saved.write_text(json.dumps({"kind": "tune", "ranking": json.loads(report(results, "--json").stdout)}))
    assert "goal: best throughput" in report(saved).stdout


@pytest.mark.parametrize("text", ['{"kind": "sweep", "schema": 1}', '{"kind": "ranking", "schema": 7}', "{", "[1]"])
def test_a_document_that_is_none_of_ours_is_refused_in_a_line(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    done = report(file)
    assert done.exit_code in (1, 2, 4)
    assert done.stderr.count("error:") == done.stderr.count("hint:") == 1


def test_a_ranking_of_another_schema_is_refused_by_it(results, tmp_path):
    saved = tmp_path / "ranking.json"
    saved.write_text(json.dumps(json.loads(report(results, "--json").stdout) | {"schema": 1}))
    done = report(saved)
    assert done.exit_code == 2
    assert "is a document of schema 1, and this llmopt draws ranking of schema 2" in done.stderr


def test_a_document_that_was_cut_is_said_in_a_line(results, tmp_path):
    saved = tmp_path / "ranking.json"
    document = json.loads(report(results, "--json").stdout)
    del document["ranked"][0]["verdict"]
    saved.write_text(json.dumps(document))
    done = report(saved, "--html", tmp_path / "report.html")
    assert done.exit_code == 2
    assert "is no whole document of llmopt: KeyError 'verdict'" in done.stderr


def test_a_saved_document_finds_its_timelines_where_it_is_told(results, tmp_path):
    pytest.importorskip("vl_convert")
    saved = tmp_path / "ranking.json"
    saved.write_text(report(results, "--json").stdout)
    pages = []
    for number, options in enumerate(([], ["--results", results])):
        file = tmp_path / f"{number}.html"
        report(saved, "--html", file, *options)
        pages.append("requests drawn" in file.read_text())
    assert pages == [False, True]


def test_a_record_of_another_schema_is_named_on_the_page(results, tmp_path):
    pytest.importorskip("vl_convert")
    (record,) = sorted(results.rglob("*plain-hf-4-0.json"))
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 9'))
    file = tmp_path / "report.html"
    assert report(results, "--html", file).exit_code == 0
    assert "it has schema 9, and this llmopt reads 1" in file.read_text()


@pytest.mark.parametrize("command", ["recommend", "report", "runs"])
def test_a_terminal_is_told_nothing_by_the_name_of_a_file(results, command):
    (results / "evil\x1b]0;owned\x07\x1b[31m.json").write_text('{"run_id": 5}')
    done = CliRunner().invoke(app, [command, str(results)])
    assert "1 file skipped: evil" in done.stderr
    assert not any(c in done.output + done.stderr for c in "\x1b\x07")


def test_an_error_and_its_hint_tell_a_terminal_nothing(capsys):
    with pytest.raises(SystemExit):
        fail("no \x1b[31mRED", "did you mean \x1b]0;owned\x07?", 2)
    assert capsys.readouterr().err == "error: no \ufffd[31mRED\nhint: did you mean \ufffd]0;owned\ufffd?\n"


def test_a_file_of_somebody_else_is_not_overwritten(results, tmp_path):
    for option, name in (("--html", "a.html"), ("--csv", "a.csv"), ("--md", "a.md")):
        file = tmp_path / name
        file.write_text("mine")
        assert report(results, option, file).exit_code == 2
        assert file.read_text() == "mine"


def test_a_report_of_ours_is_written_anew(results, tmp_path):
    file = tmp_path / "report.csv"
    assert [report(results, "--csv", file).exit_code for _ in range(2)] == [0, 0]


def test_without_a_run_the_page_is_drawn_and_it_is_said(tmp_path):
    (tmp_path / "results").mkdir()
    file = tmp_path / "report.html"
    done = report(tmp_path / "results", "--html", file)
    assert done.exit_code == 4
    assert "there is no run" in done.stderr
    assert "There is no run to rank." in file.read_text()


def test_without_the_library_one_line_says_what_to_install(results, tmp_path, monkeypatch):
    from llmopt.report import page

    page.vega.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    done = report(results, "--html", tmp_path / "report.html")
    page.vega.cache_clear()
    assert done.exit_code == 1
    assert "pip install 'llmopt[html]'" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_the_runs_as_csv_start_no_formula_and_write_over_nothing_else(results, tmp_path):
    file = tmp_path / "runs.csv"
    asked = ["runs", str(results), "--csv", str(file)]
    assert [CliRunner().invoke(app, asked).exit_code for _ in range(2)] == [0, 0]
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["artifact.quantization"] for row in rows} == {"'=cmd()", "plain"}
    assert {row["metrics.peak_vram_bytes"] for row in rows} == {""}
    file.write_text("my own notes")
    assert CliRunner().invoke(app, asked).exit_code == 2
    assert file.read_text() == "my own notes"


@pytest.mark.parametrize(
    "options",
    [["--slo", "ttft_p95<1s"], ["--optimize", "throughput"], ["--baseline", "x"], ["--force"], ["--top", "3"]],
)
def test_a_saved_document_heeds_no_wish_and_says_so(results, tmp_path, options):
    saved = tmp_path / "ranking.json"
    saved.write_text(report(results, "--json").stdout)
    done = report(saved, *options)
    assert done.exit_code == 2
    assert f"{options[0]} would change nothing" in done.stderr


def test_two_forms_in_one_file_are_refused(results, tmp_path):
    done = report(results, "--md", tmp_path / "same", "--csv", tmp_path / "same")
    assert done.exit_code == 2
    assert "--md and --csv both name" in done.stderr
    assert not (tmp_path / "same").exists()


def test_a_document_that_was_edited_is_no_defect_of_ours(results, tmp_path):
    pytest.importorskip("vl_convert")
    saved = tmp_path / "ranking.json"
    saved.write_text(report(results, "--json").stdout.replace('"measured"', '"guessed"'))
    done = report(saved, "--html", tmp_path / "report.html")
    assert done.exit_code == 2
    assert "is no whole document of llmopt" in done.stderr


def test_a_score_that_is_a_limit_has_a_column_in_every_form(tmp_path):
    pytest.importorskip("vl_convert")
    tasks = [{"task": "mmlu", "metric": "acc", "filter": "none", "value": 0.625, "stderr": 0.01, "samples": 99}]
    save_run(
        tmp_path / "results", replace(curve("a", u1=(100.0, 0.1))[0], quality=QUALITY | {"tasks": tasks}), closed_loop()
    )
    saved = tmp_path / "ranking.json"
    ranked = CliRunner().invoke(app, ["recommend", str(tmp_path / "results"), "--min-score", "mmlu>=0.5", "--json"])
    saved.write_text(ranked.stdout)
    html, csv_file = tmp_path / "report.html", tmp_path / "report.csv"
    assert report(saved, "--html", html, "--csv", csv_file, "--md", tmp_path / "report.md").exit_code == 0
    assert "task_score_mmlu" in html.read_text()
    assert [row["task_score_mmlu"] for row in csv.DictReader(csv_file.read_text().splitlines())] == ["0.625"]
