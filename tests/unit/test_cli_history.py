"""``llmopt history`` as it is typed: which case is meant, what is left out, and the forms of the answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.core.domain import Verdict
from llmopt.core.machine import this_machine
from llmopt.core.store import save_run
from llmopt.gate.baselines import set_baseline
from llmopt.gate.counts import Counts
from unit.make import MACHINE, run

OLD, NEW = "a" * 40, "b" * 40


def store(folder, name="plain", slow_from=8, count=16, key="c0ffee0123456789", **fields):
    """Sessions of a day each; from one on slower by a tenth, at another commit."""
    made = []
    for n in range(count):
        slow = n >= slow_from
        throughput = (90.0 if slow else 100.0) + 0.3 * (n * 7 % 5 - 2)
        made.append(
            run(name, throughput=throughput, run_id=f"{name}-{n:02}", case_key=key, session=f"{name}-{n}", commit=NEW if slow else OLD,
                **{"started_at": f"2026-05-{n + 1:02}T10:00:00.000+00:00"} | fields)
        )  # fmt: skip
        save_run(folder, made[-1], [])
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store(tmp_path / "results")
    return tmp_path / "results"


def history(results, *arguments):
    return CliRunner().invoke(app, ["history", "--results", str(results), *map(str, arguments)])


def document(results, *arguments):
    done = history(results, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_step_has_its_date_its_commit_and_the_one_before(results):
    (step,) = document(results, "plain on hf", "--metric", "output_tps")["series"][0]["steps"]
    assert (step["date"][:10], step["commit"], step["previous_commit"]) == ("2026-05-09", NEW, OLD)
    assert step["low"] <= step["change"] <= step["high"] < -0.09
    assert step["worse"]


def test_the_terminal_names_the_step_and_fits(results):
    done = history(results, "plain", "--metric", "output_tps")
    assert "1. 2026-05-09: -10." in done.stdout
    assert f"at commit {NEW[:10]}, after {OLD[:10]}" in done.stdout
    assert max(map(len, done.stdout.split("output_tps, 16 sessions")[1].splitlines()[:13])) <= 100
    assert "\x1b" not in done.stdout


def test_another_engine_version_is_named_beside_the_step(results, tmp_path):
    newer = tmp_path / "newer"
    made = store(newer)
    for one in made[8:]:
        save_run(newer, replace(one, backend={"name": "hf", "version": "2.0"}), [])
    (step,) = document(newer, "plain", "--metric", "output_tps")["series"][0]["steps"]
    assert step["also_changed"] == ["engine 1.0 → 2.0"]


@pytest.mark.parametrize("words", ["PLAIN ON HF", "c0ffee0123456789", "c0ff", "pla", None])
def test_a_case_is_named_by_label_or_key_or_the_beginning_of_one(results, words):
    assert document(results, *([words] if words else []))["case"]["key"] == "c0ffee0123456789"


def test_two_cases_of_one_name_are_told_by_their_keys(results):
    store(
        results,
        key="d00d000000000000",
        slow_from=99,
        count=3,
        workload={"concurrency": 8, "input_tokens": 64, "output_tokens": 32},
    )
    done = history(results, "plain on hf")
    assert done.exit_code == 2
    assert "d00d0000 (plain on hf, 64 → 32 tokens, 8 at once, 3 runs)" in done.stderr


def test_a_name_that_is_none_is_answered_with_the_nearest(results):
    done = history(results, "plane")
    assert (done.exit_code, "did you mean plain on hf?" in done.stderr) == (2, True)


def test_no_runs_at_all_is_inconclusive(tmp_path):
    (tmp_path / "results").mkdir()
    assert history(tmp_path / "results").exit_code == 4


def test_a_metric_that_no_run_knows_is_refused(results):
    done = history(results, "plain", "--metric", "peak_vram_bytes")
    assert (done.exit_code, "knows peak_vram_bytes" in done.stderr) == (2, True)


def test_a_metric_that_is_none_is_refused(results):
    assert history(results, "plain", "--metric", "speed").exit_code == 2


def test_runs_of_this_machine_are_preferred_and_the_others_counted(results, tmp_path):
    for one in store(tmp_path / "other", slow_from=99, count=2):
        save_run(results, replace(one, machine=this_machine(), run_id=f"here-{one.run_id}"), [])
    found = document(results, "plain")
    assert found["machine"]["fingerprint"] == this_machine().fingerprint
    assert found["left_out"] == {"of another machine": 16}


def test_runs_measured_in_an_older_way_are_left_out(results, tmp_path):
    store(results, "newer", key="c0ffee0123456789", slow_from=99, count=2, measuring_revision=9)
    assert document(results, "c0ffee")["left_out"] == {"measured in another way": 16}


def test_invalid_runs_are_counted_and_not_drawn(results):
    store(results, "bad", key="c0ffee0123456789", count=1, verdict=Verdict(status="invalid"))
    found = document(results, "c0ffee")
    assert found["left_out"] == {"invalid": 1}
    assert len(found["series"][0]["points"]) == 16


def test_accepted_runs_count_where_the_records_are_gone(tmp_path):
    made = store(tmp_path / "elsewhere", count=8)
    results = tmp_path / "results"
    set_baseline(results, "main", [(one, Counts()) for one in made])
    found = document(results, "plain")
    assert len(found["series"][0]["points"]) == 8
    assert [one["name"] for one in found["baselines"]] == ["main"]


def test_a_damaged_baseline_is_named_and_the_rest_is_drawn(results):
    folder = results / "baselines" / "main"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    done = history(results, "plain")
    assert done.exit_code == 0
    assert "no whole baseline" in done.stderr


def test_the_page_draws_each_metric_and_lists_the_step(results, tmp_path):
    vl_convert = pytest.importorskip("vl_convert")
    file = tmp_path / "history.html"
    assert history(results, "plain", "--html", file).exit_code == 0
    text = file.read_text()
    assert f"at commit {NEW[:10]}" in text
    charts = json.loads(text.split('id="drawn">')[1].split("</script>")[0])["charts"]
    assert set(charts) == {"output-tps", "ttft-p50", "peak-rss-bytes"}
    for chart in charts.values():
        drawn = vl_convert.vegalite_to_svg(chart["sessions"] | {"width": 600})
        assert drawn.count("aria-roledescription") > 16


def test_a_file_that_is_no_report_is_not_written_over(results, tmp_path):
    file = tmp_path / "mine.html"
    file.write_text("mine")
    assert history(results, "plain", "--html", file).exit_code == 2
    assert file.read_text() == "mine"


def test_a_hostile_name_is_obeyed_nowhere(tmp_path):
    name = "</script>\x1b[31mx"
    store(tmp_path / "results", "p", count=2, artifact={"quantization": name, "base_key": "base"})
    done = history(tmp_path / "results")
    assert done.exit_code == 0
    assert "\x1b" not in done.output


def test_one_session_is_no_plot_and_says_how_many_are_needed(tmp_path):
    store(tmp_path / "results", count=1)
    assert "1 session is too few" in history(tmp_path / "results").stdout


def test_machine_of_the_runs_is_shown(results):
    assert MACHINE.cpu in history(results, "plain").stdout
