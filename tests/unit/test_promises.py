"""What an endpoint is held to, out of a deployment's document; nothing is asked of any endpoint here."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.deploy.plan import Evidence
from llmopt.gate.promise import default_thresholds
from llmopt.gate.thresholds import parse_thresholds
from llmopt.pipeline.measured_row import workload_of
from llmopt.pipeline.promises import Wanted, read_promise
from llmopt.pipeline.verify_document import capacity_left, notes, status_of
from llmopt.pipeline.verifying import percentile, require_promised, require_workload, times
from llmopt.report.verify import remarks
from unit.deploy.make import evidence


def folder_of(tmp_path: Path, **changes: Any) -> str:
    document = {
        "schema": 1, **asdict(evidence()), "url": "http://127.0.0.1:8080/v1", "engine": {"model": "tiny", "artifact": None},
        "capacity": {"replicas": 2}, "files": {},
    }  # fmt: skip
    (tmp_path / "deployment.json").write_text(json.dumps(document | changes))
    return str(tmp_path)


def test_a_deployments_folder_says_everything(tmp_path: Path) -> None:
    found = read_promise(folder_of(tmp_path), Wanted())
    assert (found.url, found.model, found.replicas) == ("http://127.0.0.1:8080/v1", "tiny", 2)
    assert found.evidence == evidence()


def test_the_command_line_goes_before_the_folder(tmp_path: Path) -> None:
    wanted = Wanted(url="http://127.0.0.1:9/v1", model="other", replicas=3, slos=("e2e_p99<2s",))
    found = read_promise(folder_of(tmp_path), wanted)
    assert (found.url, found.model, found.replicas) == ("http://127.0.0.1:9/v1", "other", 3)
    assert [(s.metric, s.share, s.bound) for s in found.evidence.slos] == [("e2e", 0.99, 2.0)]


def test_a_url_may_be_held_to_the_folder_of_its_deployment(tmp_path: Path) -> None:
    found = read_promise("http://127.0.0.1:7/v1", Wanted(against=folder_of(tmp_path)))
    assert (found.url, found.replicas) == ("http://127.0.0.1:7/v1", 2)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": 9}, "schema 9"),
        ({"url": "file:///etc/passwd"}, "no address"),
        ({"engine": None}, "no whole document"),
        ({"figures": 3}, "lacks its evidence"),
        ({"slos": [{"text": "x"}]}, "lacks its evidence"),
        ({"url": 5}, "no whole document"),
        ({"capacity": {"replicas": "two"}}, "no whole document"),
        ({"capacity": {"replicas": 0}}, "no whole document"),
        ({"engine": {"model": "tiny", "artifact": 5}}, "no whole document"),
        ({"figures": {"requests_per_s": {"value": 5.0, "low": -5, "high": 6.0}}}, "lacks its evidence.*cannot be"),
        ({"workload": {"concurrency": 0}}, "workload is none: its concurrency is 0"),
        ({"workload": {"load": "open"}}, "workload is none: its load is open, without a rate"),
        ({"verdict": "fine"}, "lacks its evidence"),
        ({"evidence": "guessed"}, "lacks its evidence"),
    ],
)
def test_a_damaged_document_is_one_line(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word) as told:
        read_promise(folder_of(tmp_path, **changes), Wanted())
    assert told.value.hint


@pytest.mark.parametrize("slo", ["goodput_rps>5", "error_rate<1%", "ttft_mean<1s"])
def test_an_slo_that_no_request_has_is_refused(tmp_path: Path, slo: str) -> None:
    with pytest.raises(UsageError):
        read_promise(folder_of(tmp_path), Wanted(slos=(slo,)))


@pytest.mark.parametrize(
    "slo",
    [
        {"text": "ttft_p95<500ms", "metric": "ttfb", "share": 0.95, "bound": 0.5},
        {"text": "ttft_p95<500ms", "metric": "ttft", "share": 9.5, "bound": 0.5},
        {"text": "ttft_p95<500ms", "metric": "ttft", "share": 0.95, "bound": 0.4},
        {"text": "requests_per_s>5", "metric": "requests_per_s", "share": 0.95, "bound": 5.0},
    ],
)
def test_an_slo_of_a_document_that_is_none_is_refused(tmp_path: Path, slo: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is none that llmopt knows"):
        read_promise(folder_of(tmp_path, slos=[slo | {"measured": None}]), Wanted())


def test_of_two_slos_on_one_percentile_the_tighter_is_judged_and_says_so(tmp_path: Path) -> None:
    wanted = Wanted(slos=("ttft_p95<500ms", "tps_p50>20", "ttft_p95<400ms", "tpot_p50<40ms"))
    found = read_promise(folder_of(tmp_path), wanted).evidence.slos
    assert [(s.text, s.implies) for s in found] == [
        ("ttft_p95<400ms", ("ttft_p95<500ms",)),
        ("tpot_p50<40ms", ("tps_p50>20",)),
    ]


def test_two_slos_of_a_document_on_one_percentile_are_one(tmp_path: Path) -> None:
    twice = [asdict(slo) for slo in (*evidence().slos, replace(evidence().slos[0], text="ttft_p95<0.4s", bound=0.4))]
    found = read_promise(folder_of(tmp_path, slos=twice), Wanted()).evidence.slos
    assert [slo.text for slo in found] == ["ttft_p95<0.4s", "tpot_p95<50ms"]


def test_a_load_is_that_of_all_replicas_with_requests_enough_for_its_percentiles() -> None:
    closed = times(Workload(concurrency=4, requests=64), 3, [0.5])
    assert (closed.concurrency, closed.requests) == (12, 192)
    rated = times(Workload(load="open", rate=2.0, requests=64, max_concurrency=8), 2, [0.99])
    assert (rated.rate, rated.max_concurrency) == (4.0, 16)
    assert rated.requests is not None
    assert rated.requests >= 299


@pytest.mark.parametrize(
    ("distribution", "found"),
    [
        ({"p95": 0.2, "n": 60}, 0.2),
        ({"p95": None, "n": 60}, math.inf),  # so many failed that there is none
        ({"p95": None, "n": 20}, None),  # so few that it says nothing
        ({"p50": 0.1, "n": 60}, None),
        (None, None),
    ],
)
def test_a_percentile_of_a_record(distribution: dict[str, Any] | None, found: float | None) -> None:
    assert percentile(distribution, 0.95) == found


def test_evidence_survives_its_document() -> None:
    made: Evidence = replace(evidence(), forced=("it was rejected",), rank=None)
    import msgspec

    assert msgspec.convert(json.loads(json.dumps(asdict(made))), Evidence) == made


def test_a_document_that_is_no_object_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "deployment.json").write_text("[1]")
    with pytest.raises(UsageError, match="no whole document"):
        read_promise(str(tmp_path), Wanted())


@pytest.mark.parametrize("changes", [{"requests": 10**12}, {"dataset": "x" * 5000}])
def test_a_workload_that_makes_no_run_here_is_refused_before_any(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        require_workload(replace(Workload(), **changes))


def test_a_workload_that_is_none_is_one_line() -> None:
    with pytest.raises(UsageError, match="workload is none"):
        workload_of({"concurrency": "many"})


def test_a_rate_of_tokens_is_promised_as_the_time_of_one(tmp_path: Path) -> None:
    figures = {"tpot_p50": {"value": 0.03, "unit": "s"}, "tps_p50": {"value": 32.0, "unit": "tps"}}
    found = read_promise(folder_of(tmp_path, figures=figures), Wanted(slos=("tps_p50>20",)))
    assert [(s.metric, s.measured) for s in found.evidence.slos] == [("tpot", 0.03)]


def test_what_was_not_promised_cannot_be_asked_for(tmp_path: Path) -> None:
    promise = read_promise(folder_of(tmp_path), Wanted())
    with pytest.raises(UsageError, match="nothing was promised of itl_p50"):
        require_promised(promise, parse_thresholds(["itl_p50:1%"]))
    require_promised(promise, default_thresholds())


LEVEL: dict[str, Any] = {
    "replicas": 1, "load": "closed loop of 4", "runs": ["a"], "requests": 160, "failed": 0, "errors": {}, "metrics": [],
    "failures_status": "pass", "slo_status": "kept", "slos": [], "left_out": [], "requests_per_s": 10.0, "invalid": [],
    "problem": None,
}  # fmt: skip


def test_a_server_that_went_away_is_told_as_that(tmp_path: Path) -> None:
    gone = LEVEL | {"problem": "connection refused", "failures_status": "regression", "slos": [{"status": "missed"}]}
    status, reasons = status_of(gone)
    assert (status, reasons) == ("regression", ["after 1 run(s) it answered no more: connection refused"])
    left = capacity_left(read_promise(folder_of(tmp_path), Wanted()), [gone | {"slo_status": "missed"}])
    assert left is not None
    assert left["words"] == "not known: at closed loop of 4 it answered no more"


def test_a_percentile_of_a_rate_is_answered_with_that_of_the_time_of_a_token(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_promise(folder_of(tmp_path), Wanted(slos=("tps_p95>20",)))
    assert raised.value.hint == "--slo 'tpot_p95<50ms'"


def test_what_a_gateway_refused_is_told_as_its_limit() -> None:
    lines = list(remarks({"capacity": None, "levels": [LEVEL | {"errors": {"http_429": 3, "reset": 1}}], "notes": []}))
    assert lines[0].startswith("3 × http_429: more than the gateway takes from one client")
    assert lines[1] == "1 × reset"


def test_a_figure_that_was_asked_for_and_is_not_there_lets_nothing_pass() -> None:
    assert status_of(LEVEL | {"left_out": ["peak_vram_bytes"], "metrics": [{"name": "x", "status": "equivalent"}]}) == (
        "inconclusive",
        ["peak_vram_bytes was not told by every run"],
    )


def test_a_limit_of_the_goal_that_is_not_judged_is_said(tmp_path: Path) -> None:
    held = read_promise(folder_of(tmp_path, without_slo=["requests_per_s>3"]), Wanted())
    said = "it was judged by requests_per_s>3 as well, which is not judged here"
    assert [note for note in notes(held, LEVEL) if note.startswith(said)]
