"""Accepted runs: kept, read back, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.core.domain import Doubt, Verdict
from llmopt.core.errors import StoreError, UsageError
from llmopt.gate import baselines
from llmopt.gate.differences import differences, require_allowed
from tests.unit.gate.blocks import GOOD
from tests.unit.make import run as make_run


def pairs(*ids: str, **rest):  # type: ignore[no-untyped-def]
    return [(make_run(run_id=name, **rest), GOOD) for name in ids]


def test_what_was_accepted_is_read_back(tmp_path: Path) -> None:
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a", "b"))
    found = baselines.read_baseline(tmp_path, "main")
    assert [run.run_id for run in found.runs] == ["a", "b"]
    assert found.counts["a"] == GOOD
    assert file.parent == tmp_path / "baselines" / "main"
    assert 0 <= found.age_days < 1


def test_accepting_again_takes_the_place_of_the_case(tmp_path: Path) -> None:
    baselines.set_baseline(tmp_path, "main", pairs("a"))
    baselines.set_baseline(tmp_path, "main", pairs("b"))
    assert [run.run_id for run in baselines.read_baseline(tmp_path, "main").runs] == ["b"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 65])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        baselines.set_baseline(tmp_path, name, pairs("a"))


def test_a_missing_baseline_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    baselines.set_baseline(tmp_path, "main", pairs("a"))
    with pytest.raises(StoreError) as caught:
        baselines.read_baseline(tmp_path, "mian")
    assert "main" in (caught.value.hint or "")


@pytest.mark.parametrize("change", [{"schema": 7}, {"schema": "1"}, {"runs": []}, {"counts": []}, {"accepted_at": "soon"},
                                    {"accepted_at": "2026-11-22T00:00:00"}])  # fmt: skip
def test_a_baseline_of_another_schema_or_a_damaged_one_is_refused(tmp_path: Path, change: dict) -> None:  # type: ignore[type-arg]
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match=r"schema (7|'1')|no whole baseline"):
        baselines.read_baseline(tmp_path, "main")


@pytest.mark.parametrize("value", ["0.01", True, [0.01], {"p50": "0.01"}, {"p50": {"deeper": 1}}])
def test_a_figure_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a"))
    document = json.loads(file.read_text())
    document["runs"][0]["metrics"]["tpot_s"] = value
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"no whole baseline: tpot_s.* of run a is .* no number"):
        baselines.read_baseline(tmp_path, "main")


def test_a_quality_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a", quality={"kl_mean": 0.01, "base": "bf16"}))
    document = json.loads(file.read_text())
    document["runs"][0]["quality"]["kl_mean"] = "0.01"
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"kl_mean of run a is '0\.01', and no number"):
        baselines.read_baseline(tmp_path, "main")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("quality", {"kl_mean_interval": [None, 1]}),
        ("quality", {"kl_mean_interval": "ab"}),
        ("quality", {"perplexity": 0}),
        ("metrics", {"output_tps": {"p50": 3}}),
    ],
)
def test_what_no_record_may_be_no_baseline_may(tmp_path: Path, part: str, change: dict) -> None:  # type: ignore[type-arg]
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a"))
    document = json.loads(file.read_text())
    document["runs"][0][part] |= change
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="no whole baseline"):
        baselines.read_baseline(tmp_path, "main")


@pytest.mark.parametrize(
    ("run", "counts"),
    [
        ({"quality": {"kl_mean": 0.01, "perplexity": 0.0}}, {}),
        ({"metrics": {"tpot_s": "0.01"}}, {}),
        ({}, {"failed": 61}),
    ],
)
def test_what_no_gate_could_read_is_not_written(tmp_path: Path, run: dict, counts: dict) -> None:  # type: ignore[type-arg]
    bad = (make_run(run_id="bad", case_key="other", **run), replace(GOOD, **counts))
    with pytest.raises(UsageError, match=r"no gate could read this baseline: .* (of run bad is|were counted)"):
        baselines.set_baseline(tmp_path, "main", [*pairs("a"), bad])
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize("change", [{"planned": -5}, {"planned": 5, "failed": 6}, {"short": 61}, {"errors": {"x": -1}}])
def test_counts_that_cannot_be_are_refused(tmp_path: Path, change: dict) -> None:  # type: ignore[type-arg]
    (file,) = baselines.set_baseline(tmp_path, "main", pairs("a"))
    document = json.loads(file.read_text())
    document["counts"][0] |= change
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="were counted"):
        baselines.read_baseline(tmp_path, "main")


def test_a_baseline_keeps_the_tokenizer(tmp_path: Path) -> None:
    baselines.set_baseline(tmp_path, "main", pairs("a", tokens={"tokenizer": "x", "prompt": 1920}))
    (old,) = baselines.read_baseline(tmp_path, "main").runs
    (found,) = differences([old], [make_run(run_id="b", tokens={"tokenizer": "y"})], live=False)
    assert (found.name, found.weight) == ("tokenizer", "must be meant")


def test_counts_and_unknown_figures_are_figures(tmp_path: Path) -> None:
    figures = {"errors": {"timeout": 3}, "errors_of_none": {}, "tpot_s": {"p50": 0.01, "p99": None}, "ttft_s": None}
    baselines.set_baseline(tmp_path, "main", pairs("a", metrics=figures))
    assert baselines.read_baseline(tmp_path, "main").runs[0].metrics == figures


def test_a_server_s_own_times_say_that_they_are_interpolated(tmp_path: Path) -> None:
    told = {"server_ttft_s": {"mean": 0.02, "p50": 0.02, "n": 8, "interpolated": True}}
    baselines.set_baseline(tmp_path, "main", pairs("a", metrics=told))
    assert baselines.read_baseline(tmp_path, "main").runs[0].metrics == told


def test_alike_sides_have_no_difference() -> None:
    assert differences([make_run(run_id="a")], [make_run(run_id="b")], live=False) == ()


def test_another_engine_version_must_be_meant_unless_both_are_measured_now() -> None:
    one, other = make_run(run_id="a"), make_run(run_id="b")
    other = replace(other, backend=other.backend | {"version": "9"})
    (found,) = differences([one], [other], live=False)
    assert (found.name, found.weight) == ("version", "must be meant")
    assert require_allowed([found], []) == ("version",)
    assert require_allowed([found], ["version"]) == ()
    assert differences([one], [other], live=True)[0].weight == "told"


@pytest.mark.parametrize(("name", "part"), [("tokenizer", "tokens"), ("driver", "telemetry")])
def test_what_older_records_do_not_tell_is_no_difference(name: str, part: str) -> None:
    old, one, other = (
        replace(make_run(run_id=i), **{part: {name: told} if told else {}})
        for i, told in (("a", None), ("b", "x"), ("c", "y"))
    )
    assert differences([old], [one], live=False) == ()
    (found,) = differences([one], [other], live=False)
    assert (found.name, found.weight) == (name, "must be meant")


@pytest.mark.parametrize(("mhz", "told"), [(1970.0, []), (1700.0, ["clocks"])])
def test_clocks_that_are_apart_are_told(mhz: float, told: list[str]) -> None:
    one, other = (replace(make_run(run_id=i), telemetry={"sm_mhz": v}) for i, v in (("a", 1980.0), ("b", mhz)))
    assert [d.name for d in differences([one], [other], live=False)] == told


def test_another_workload_forbids_the_comparison_unless_allowed() -> None:
    one, other = make_run(run_id="a"), make_run(run_id="b")
    other = replace(other, workload=other.workload | {"input_tokens": 4096})
    found = differences([one], [other], live=False)
    with pytest.raises(UsageError, match="workload"):
        require_allowed(found, [])
    assert require_allowed(found, ["workload"]) == ()


def test_an_unknown_name_to_allow_is_refused() -> None:
    with pytest.raises(UsageError, match="no difference"):
        require_allowed([], ["versoin"])


def test_why_runs_are_refused_is_their_invalidity_and_no_lesser_doubt(tmp_path: Path) -> None:
    words = ("suspect", "invalid")
    doubts = tuple(Doubt(code=word, severity=word, message=f"{word} words", remedy="") for word in words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="invalid words"):
        baselines.set_baseline(tmp_path, "main", pairs("a", verdict=Verdict.of(doubts)))
