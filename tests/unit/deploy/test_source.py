"""What is deployed, out of rankings, folders, runs and cases; and why it would not be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.limits import parse_limit
from llmopt.core.store import save_run
from llmopt.pipeline.deploy_slos import without_slo
from llmopt.pipeline.deploy_source import Asked, evidence_of, read_source
from unit.make import closed_loop, curve


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for name, points in (
        ("fast", {"u1": (100.0, 0.1), "u4": (300.0, 0.2)}),
        ("slow", {"u1": (50.0, 0.2), "u4": (100.0, 0.4)}),
    ):
        for run in curve(name, **points):
            save_run(folder, run, closed_loop())
    return folder


def found(source: Any, results: Path, **asked: Any) -> Any:
    wanted = Asked(results=results, **asked)
    return evidence_of(read_source(str(source), wanted), wanted)


def ranking(results: Path, tmp_path: Path, *options: str) -> Path:
    done = CliRunner().invoke(app, ["recommend", str(results), "--json", *options])
    assert done.exit_code == 0, done.stderr
    file = tmp_path / "ranking.json"
    file.write_text(done.stdout)
    return file


def test_a_folder_of_results_gives_its_first(results):
    assert found(results, results).label.startswith("fast")


def test_a_server_that_somebody_else_started_is_passed_over(results):
    """What verify measures of an endpoint is newer than what the endpoint was made of."""
    served = curve("their model", u1=(500.0, 0.1))[0]
    later = {"started_at": "2027-01-01T00:00:00.000+00:00", "serve": {"backend": "url", "url": "http://x"}}
    save_run(results, replace(served, **later), closed_loop())
    assert found(results, results).label.startswith("fast")


def test_a_saved_ranking_gives_the_same(results, tmp_path):
    one, other = found(ranking(results, tmp_path), results), found(results, results)
    assert replace(one, source="") == replace(other, source="")


def test_another_rank_is_another_row(results):
    assert found(results, results, rank=2).label.startswith("slow")


def test_a_rank_that_is_not_there_is_refused(results):
    with pytest.raises(UsageError, match="--rank 9"):
        found(results, results, rank=9)


def test_the_folder_of_tune_is_that_of_its_results(results):
    (results.parent / "tune.json").write_text("{}")
    assert found(results.parent, Path("nowhere")).label.startswith("fast")


def test_a_run_by_its_id_is_that_run(results):
    run = sorted(p.stem for p in results.glob("*/*.json") if p.name != "machine.json" and "slow" in p.read_text())[0]
    assert found(run, results).run_ids == (run,)


def test_a_case_by_its_key_has_the_load_curve_of_its_configuration(results):
    run = json.loads(next(p for p in results.glob("*/*.json") if "slow" in p.read_text()).read_text())
    assert {p["level"] for p in found(run["case_key"], results).curve} == {1.0, 4.0}


def test_a_run_s_record_is_that_run(results):
    record = next(p for p in sorted(results.glob("*/*.json")) if p.name != "machine.json")
    assert found(record, Path("nowhere")).run_ids == (record.stem,)


def test_what_names_nothing_is_refused(results):
    with pytest.raises(UsageError, match="no ranking, results folder, run or case"):
        found("nothing", results)


def test_a_cut_ranking_is_no_whole_one(results, tmp_path):
    document = json.loads(ranking(results, tmp_path).read_text())
    del document["ranked"][0]["verdict"]
    (tmp_path / "cut.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="no whole ranking"):
        found(tmp_path / "cut.json", results)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("ranked", 0, "verdict", "reasons"), [{"code": "errors", "severity": "suspect"}]),
        (("ranked", 0, "case", "workload", "request_timeout_s"), "12"),
        (("ranked", 0, "case", "workload", "concurrency"), 0),
        (("ranked", 0, "case", "serve", "max_num_seqs"), "many"),
        (("ranked", 0, "case", "serve", "extra_args"), ["--x\0"]),
        (("ranked", 0, "case", "artifact", "path"), 5),
        (("ranked", 0, "numbers", "requests_per_s", "low"), -5),
        (("ranked", 0, "numbers", "requests_per_s"), {"value": 5, "low": 6, "high": 4}),
        (("ranked", 0, "metrics", "error_rate"), 9.5),
        (("ranked", 0, "metrics", "peak_rss_bytes"), {"p50": 3}),
        (("ranked", 0, "curve", 0, "metrics", "ttft_s"), {"p50": -1}),
        (("ranked", 0, "curve", 0, "run_ids"), ["../../etc/passwd"]),
        (("ranked", 0, "runs"), 0),
        (("ranked", 0, "quality"), {"kl_mean": "small"}),
        (("ranked",), {"0": 1}),
        (("machine", "gpus"), "two"),
        (("goal", "limits"), [{"metric": "ttft"}]),
        (("kind",), []),
        (("kind",), "tune"),
    ],
)
def test_a_damaged_ranking_is_one_line_that_says_what(results, tmp_path, path, value):
    document = json.loads(ranking(results, tmp_path).read_text())
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (tmp_path / "damaged.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"no whole ranking|workload is none|has kind") as told:
        found(tmp_path / "damaged.json", results)
    assert told.value.hint


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_whatever_is_edited_is_evidence_or_an_error_of_ours(results, tmp_path):
    """Each part of a ranking once, with a value of another type or range: any other exception fails this test."""
    text = ranking(results, tmp_path, "--slo", "ttft_p50<500ms").read_text()
    values = itertools.cycle([None, "x", -1, 0, [], {}, True, 10**30, "\0", [None], [{}], 9.5])
    refused = 0
    for path, value in zip(list(places(json.loads(text))), values, strict=False):
        document = part = json.loads(text)
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (tmp_path / "edited.json").write_text(json.dumps(document))
        try:
            found(tmp_path / "edited.json", results)
        except LlmoptError:
            refused += 1
    assert refused > 50


def test_a_part_of_a_ranking_that_nobody_asks_for_may_be_anything(results, tmp_path):
    file = changed(results, tmp_path, diagnosis=5, numbers={"of_a_later_llmopt": {"value": -1}})
    assert found(file, results).label.startswith("fast")


def test_what_is_no_json_is_refused(results, tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UsageError, match="no JSON document"):
        found(tmp_path / "x.json", results)


# --- SLOs ----------------------------------------------------------------------------------------------------------------


def test_the_slos_are_the_goal_s(results, tmp_path):
    slos = found(ranking(results, tmp_path, "--slo", "ttft_p50<500ms"), results).slos
    assert [(s.text, s.metric, s.share, s.bound, s.chosen_by_us) for s in slos] == [
        ("ttft_p50<500ms", "ttft", 0.5, 0.5, False)
    ]


def test_without_any_they_are_twice_what_was_measured_and_say_so(results):
    slo = next(s for s in found(results, results).slos if s.metric == "ttft")
    assert slo.chosen_by_us
    assert slo.bound == pytest.approx(2 * slo.measured, rel=1e-3)
    assert slo.bound >= 2 * slo.measured


def test_those_that_are_asked_for_now_go_first(results, tmp_path):
    file = ranking(results, tmp_path, "--slo", "ttft_p50<500ms")
    assert [s.text for s in found(file, results, slos=("e2e_p50<9s",)).slos] == ["e2e_p50<9s"]


@pytest.mark.parametrize(
    "slo", ["requests_per_s>3", "ttft_mean<1s", "error_rate<1%", "tps_p50>0", "ttft_p95<=0s", "tps_p95>20"]
)
def test_one_that_is_asked_for_and_is_no_percentile_is_refused(results, tmp_path, slo):
    file = ranking(results, tmp_path, "--slo", "ttft_p50<500ms")
    with pytest.raises(UsageError, match="on a percentile of what a request takes"):
        found(file, results, slos=(slo, "e2e_p50<9s"))


def test_of_two_on_one_percentile_the_tighter_counts(results):
    slos = found(results, results, slos=("tps_p50>2", "tpot_p50<400ms", "ttft_p50<2s", "ttft_p50<2s")).slos
    assert [(s.text, s.implies) for s in slos] == [("tpot_p50<400ms", ("tps_p50>2",)), ("ttft_p50<2s", ())]


def test_an_slo_of_a_ranking_whose_words_say_something_else_is_refused(results, tmp_path):
    file = ranking(results, tmp_path, "--slo", "ttft_p50<500ms")
    file.write_text(file.read_text().replace('"bound": 0.5', '"bound": 0.9').replace('"bound":0.5', '"bound":0.9'))
    with pytest.raises(UsageError, match="none that llmopt knows"):
        found(file, results)


def test_a_rate_of_tokens_is_the_time_of_one(results, tmp_path):
    [slo] = found(ranking(results, tmp_path, "--slo", "tps_p50>2"), results).slos
    assert (slo.metric, slo.share, slo.bound) == ("tpot", 0.5, 0.5)


# --- evidence ------------------------------------------------------------------------------------------------------------


def changed(results: Path, tmp_path: Path, **fields: Any) -> Path:
    document = json.loads(ranking(results, tmp_path).read_text())
    document["ranked"][0] |= fields
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_sound_evidence_forces_nothing(results):
    assert found(results, results).forced == ()


def test_an_invalid_verdict_is_a_reason_to_refuse(results, tmp_path):
    reason = {"code": "errors", "severity": "invalid", "message": "half of it failed", "remedy": ""}
    file = changed(results, tmp_path, verdict={"status": "invalid", "reasons": [reason]})
    assert found(file, results).forced == ("its runs are invalid: half of it failed",)


def test_a_suspect_verdict_and_interpolated_figures_are_good_enough(results, tmp_path):
    assert (
        found(changed(results, tmp_path, verdict={"status": "suspect"}, evidence="interpolated"), results).forced == ()
    )


@pytest.mark.parametrize("fields", [{"verdict": {"status": "fine"}}, {"evidence": "guessed"}])
def test_a_verdict_or_an_origin_that_nobody_knows_is_refused(results, tmp_path, fields):
    with pytest.raises(UsageError, match="no whole ranking: Invalid enum value"):
        found(changed(results, tmp_path, **fields), results)


def test_an_estimate_is_a_reason_to_refuse(results, tmp_path):
    assert "estimated" in found(changed(results, tmp_path, evidence="estimated"), results).forced[0]


def test_a_rejected_row_is_taken_where_nothing_is_ranked_and_says_why(results, tmp_path):
    done = CliRunner().invoke(app, ["recommend", str(results), "--json", "--slo", "ttft_p50<1ms"])
    (tmp_path / "rejected.json").write_text(done.stdout)
    forced = found(tmp_path / "rejected.json", results).forced
    assert forced[0].startswith("it was rejected: ")


def test_nothing_measured_is_no_source(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(LlmoptError, match="no run"):
        found(tmp_path / "results", tmp_path / "results")


def test_memory_is_the_peak_of_every_load(results):
    points = found(results, results).curve
    peaks = [p["metrics"].get("peak_rss_bytes") for p in points if p["metrics"].get("peak_rss_bytes")]
    assert found(results, results).peak_memory_bytes == (max(peaks) if peaks else None)


@pytest.mark.parametrize(("asked", "left"), [
    (("ttft_p95<9s", "ttft_mean<9s", "requests_per_s>0.1"), ("ttft_mean<9s", "requests_per_s>0.1")),
    (("ttft_p95<9s", "tps_p50>0.1", "ttft_p95<8s"), ()),
])  # fmt: skip
def test_a_limit_of_the_goal_that_is_no_slo_is_named(results, tmp_path, asked, left):
    options = [word for text in asked for word in ("--slo", text)]
    file = ranking(results, tmp_path, *options, "--max-kl", "9")
    assert found(file, results).without_slo == left


def test_a_limit_of_every_single_request_is_no_slo_either():
    judged = ("ttft<500ms", "tpot_p95<50ms")
    assert without_slo((), [], judged) == ("ttft<500ms",)
    assert without_slo((), [parse_limit("ttft_p95<500ms")], judged) == ()
    assert without_slo(("ttft_p95<500ms",), [], judged) == ()
