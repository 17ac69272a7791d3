"""``llmopt import`` as it is typed: what becomes of files, what is refused, and that imported runs are gated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.run_index import load_runs, read_store
from llmopt.core.store import prepare_results, record_file, save_record
from unit.gate.imported import RECORDINGS, recording, write
from unit.make import run


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def imported(call):
    """The document of an import that succeeds."""

    def of(*words: Any) -> dict[str, Any]:
        done = call("import", *words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return of


@pytest.fixture
def refused(call):
    """The words of one that ends with one error and one hint."""

    def of(*words: Any, status: int = 2) -> str:
        done = call("import", *words)
        assert (done.exit_code, done.stdout) == (status, ""), done.output
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
        assert "defect" not in done.stderr
        assert not list(Path("results").rglob("imported-*.json"))
        return done.stderr

    return of


def slower(factor: float, number: int) -> dict[str, Any]:
    """Another run of the recorded case, slower by so much, and a little otherwise than the last one."""
    saved, factor = recording("vllm-detailed.json"), factor * (1 + 0.002 * number)
    saved["duration"] *= factor
    saved |= {
        name: saved[name] / factor for name in ("request_throughput", "output_throughput", "total_token_throughput")
    }
    saved["ttfts"] = [value * factor for value in saved["ttfts"]]
    saved["itls"] = [[value * factor for value in gaps] for gaps in saved["itls"]]
    return saved | {"date": f"20261122-0600{number:02}"}


def three(folder: Path, factor: float) -> list[Path]:
    folder.mkdir()
    return [write(folder, f"{n}.json", slower(factor, n)) for n in range(3)]


# --- records ------------------------------------------------------------------------------------------------------


def test_a_record_says_where_it_is_from(imported):
    (row,) = imported(RECORDINGS / "vllm-detailed.json")["runs"]
    record = json.loads(Path(row["record"]).read_text())
    assert record["backend"]["name"] == "imported-vllm"
    assert record["machine"]["fingerprint"].startswith("imported-")
    assert record["machine"]["memory_bytes"] is None
    assert record["client"]["tool"] == "vllm bench serve"
    assert record["definitions"]["vllm"]["mean_itl_ms"] > 0
    assert record["metrics"].get("ttft_s") is None


def test_an_imported_run_is_suspect_with_a_reason(imported):
    (row,) = imported(RECORDINGS / "vllm-detailed.json")["runs"]
    assert row["verdict"]["status"] == "suspect"
    assert row["verdict"]["reasons"][0]["code"] == "imported"


def test_failures_make_it_invalid(imported, tmp_path):
    saved = recording("vllm-chat.json") | {"completed": 15, "failed": 5}
    (row,) = imported(write(tmp_path, "r.json", saved))["runs"]
    assert row["verdict"]["status"] == "invalid"
    assert load_runs(Path("results"))[0].metrics["error_rate"] == 0.25


@pytest.mark.parametrize("name", [p.name for p in sorted(RECORDINGS.iterdir()) if p.suffix != ".md"])
def test_the_store_reads_every_record(imported, name):
    rows = imported(RECORDINGS / name)["runs"]
    stored = read_store(Path("results"))
    assert not stored.skipped
    assert {r.run_id for r in map(stored.table.record, range(len(stored.table)))} == {row["run_id"] for row in rows}


def test_the_same_file_twice_is_one_run(imported):
    first = imported(RECORDINGS / "guidellm-v2.json")["runs"]
    again = imported(RECORDINGS / "guidellm-v2.json")["runs"]
    assert [row["run_id"] for row in first] == [row["run_id"] for row in again]
    assert (first[0]["already_there"], again[0]["already_there"]) == (False, True)
    assert len(load_runs(Path("results"))) == 1


def test_a_file_that_grew_brings_its_new_lines(imported, tmp_path):
    lines = [json.dumps(slower(1, n)) for n in range(3)]
    imported(write(tmp_path, "appended.json", "\n".join(lines[:2])))
    rows = imported(write(tmp_path, "appended.json", "\n".join(lines)))["runs"]
    assert [row["already_there"] for row in rows] == [True, True, False]


def test_runs_of_one_load_are_one_case(imported, tmp_path):
    rows = imported(*three(tmp_path / "files", 1))["runs"]
    assert len({row["case_key"] for row in rows}) == 1


def test_a_file_without_a_time_has_that_of_its_writing(imported, tmp_path):
    file = write(tmp_path, "r.json", recording("vllm-chat.json") | {"date": None})
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert imported(file)["runs"][0]["started_at"].startswith("2023-11-14")


def test_the_machine_may_be_that_of_a_record(imported):
    known = run("plain", run_id="known")
    prepare_results(Path("results"), known.machine)
    save_record(Path("results"), known)
    (row,) = imported(RECORDINGS / "vllm-chat.json", "--machine-of", record_file(Path("results"), known))["runs"]
    assert row["machine"] == known.machine.fingerprint


def test_no_imported_run_is_of_this_machine(imported):
    for file in ("aiperf.json", "llama-bench.json", "vllm-chat.json"):
        imported(RECORDINGS / file)
    assert load_runs(Path("results"), machine=this_machine()) == []


def test_a_machine_without_words_has_no_cores_in_a_title(imported, call):
    imported(RECORDINGS / "vllm-chat.json")
    done = call("history", "--metric", "e2e_service_mean")
    assert "imported, unknown" in done.stdout
    assert "None" not in done.stdout


def test_an_imported_run_is_not_ranked_beside_ours(imported, call):
    known = run("plain", run_id="known")
    prepare_results(Path("results"), known.machine)
    save_record(Path("results"), known)
    imported(RECORDINGS / "vllm-chat.json", "--machine-of", record_file(Path("results"), known))
    ranking = json.loads(call("recommend", "results", "--json").stdout)
    assert [row["label"] for row in ranking["ranked"]] == ["plain on hf"]


def test_for_people_it_says_what_is_ours_and_what_is_not(call):
    done = call("import", RECORDINGS / "guidellm-v2.json")
    assert "as ours: ttft_service" in done.stdout
    assert "unlike" in done.stdout
    assert "1 new of 1 runs" in done.stdout


# --- the gate -----------------------------------------------------------------------------------------------------


def test_imported_runs_are_gated(imported, call, tmp_path):
    imported(*three(tmp_path / "one", 1.0), "--results", "base")
    imported(*three(tmp_path / "two", 2.0), "--results", "candidate")
    done = call("gate", "base", "candidate", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 3, done.output
    assert {r.measuring_revision for r in load_runs(Path("base"))} == {MEASURING_REVISION}
    assert "regression" in json.dumps(found)


def test_alike_imported_runs_are_no_regression(imported, call, tmp_path):
    imported(*three(tmp_path / "one", 1.0), "--results", "base")
    imported(*three(tmp_path / "two", 1.001), "--results", "candidate")
    assert call("gate", "base", "candidate", "--metric", "ttft_service_p50:20%:40%").exit_code in (0, 4)


def test_runs_of_another_tool_are_not_compared_unasked(imported, call):
    imported(RECORDINGS / "aiperf.json", "--results", "base")
    imported(RECORDINGS / "guidellm-v2.json", "--results", "candidate")
    done = call("gate", "base", "candidate")
    assert done.exit_code == 2
    assert "another" in done.stderr


def test_imported_runs_become_a_baseline(imported, call, tmp_path):
    imported(*three(tmp_path / "one", 1.0), "--results", "base")
    assert call("baseline", "set", "main", "base", "--results", "results").exit_code == 0
    imported(*three(tmp_path / "two", 2.0), "--results", "candidate")
    assert call("gate", "main", "candidate").exit_code == 3


def test_imported_runs_have_a_history(imported, call, tmp_path):
    imported(*three(tmp_path / "one", 1.0))
    done = call("history", "--metric", "output_tps_whole", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"] == 3


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("   \n", "is empty"),
        ("{", "is no JSON"),
        ("hello", "no JSON objects"),
        ("[1, 2]", "no JSON objects"),
        ("[]", "no JSON objects"),
        ("{}", "no tool that is known"),
        ("a,b\n1,2\n", "no tool that is known"),
        ("a,b\n1,2,3\n", "no JSON objects"),
        ("[" * 100_000, "nested too deeply"),
        ('{"benchmarks": []}', "no benchmark"),
    ],
)
def test_what_is_no_result_is_refused(refused, tmp_path, text, words):
    assert words in refused(write(tmp_path, "r.json", text))


def test_a_file_that_is_not_there(refused):
    assert "nowhere.json" in refused("nowhere.json")


def test_a_file_that_is_no_text(refused, tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(tmp_path / "r.json")


def test_another_tools_file_is_refused_with_its_name(refused):
    words = refused(RECORDINGS / "aiperf.json", "--as", "vllm")
    assert "no result of vllm bench serve" in words
    assert "--as aiperf" in words


def test_an_unknown_tool_is_refused(refused):
    assert "guidellm" in refused(RECORDINGS / "aiperf.json", "--as", "guidelm")


def test_zero_requests_are_refused(refused, tmp_path):
    nothing = recording("vllm-chat.json") | {"completed": 0, "failed": 0, "num_prompts": 0}
    assert "no request" in refused(write(tmp_path, "r.json", nothing))


def test_a_figure_that_is_no_number_is_refused(refused, tmp_path):
    text = json.dumps(recording("vllm-chat.json") | {"mean_e2el_ms": float("nan")})
    assert "mean_e2el_ms is nan" in refused(write(tmp_path, "r.json", text))


def test_a_shape_that_is_not_known_is_refused(refused, tmp_path):
    report = recording("guidellm-v2.json")
    report["benchmarks"][0]["requests"]["successful"] = 7
    assert "another shape" in refused(write(tmp_path, "r.json", report))


def test_a_machine_of_no_record_is_refused(refused, tmp_path):
    assert "no run record" in refused(RECORDINGS / "aiperf.json", "--machine-of", tmp_path)


def test_percentiles_that_are_missing_are_unknown(imported, tmp_path):
    saved = {name: value for name, value in recording("vllm-chat.json").items() if not name.startswith(("p", "median"))}
    imported(write(tmp_path, "r.json", saved))
    (run,) = load_runs(Path("results"))
    assert run.metrics["e2e_service_s"]["p50"] is None
    assert run.metrics["e2e_service_s"]["mean"] > 0
