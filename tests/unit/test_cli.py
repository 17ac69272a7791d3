"""The command line from outside: what a person types, and what comes back on which stream."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from llmopt.core.store import save_run
from unit.make import artifact, model, run

FAST_RUN = ("--requests", "6", "--concurrency", "2", "--warmup-requests", "1", "--input-tokens", "16", "--output-tokens", "4")  # fmt: skip


@pytest.fixture
def environment(tmp_path):
    return os.environ | {"LLMOPT_HOME": str(tmp_path / "home")}


@pytest.fixture
def llmopt(tmp_path, environment):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "llmopt", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment,
        )  # fmt: skip

    return call


@pytest.fixture
def fails(llmopt):
    """The words of a command that must fail in the way that all do: one error, one hint, nothing else."""

    def call(*arguments, status):
        told = llmopt(*arguments)
        lines = told.stderr.splitlines()
        assert (told.returncode, told.stdout) == (status, ""), told.stderr
        assert "Traceback" not in told.stderr
        assert "defect" not in told.stderr
        assert sum(line.startswith("error: ") for line in lines) == 1, told.stderr
        assert sum(line.startswith("hint: ") for line in lines) == 1, told.stderr
        return told.stderr

    return call


@pytest.fixture
def results(tmp_path):
    save_run(tmp_path / "results", run("fast", throughput=200.0), [])
    save_run(tmp_path / "results", run("slow", throughput=100.0), [])
    return tmp_path / "results"


# --- what is wrong ----------------------------------------------------------------------------------------------


def test_an_unknown_quantization(fails):
    words = fails("quantize", "demo", "-q", "gptq-int4", "-o", "out", status=2)
    assert "error: unknown quantization 'gptq-int4'" in words
    assert "gptq-int4-g128" in words


def test_no_model(fails):
    assert "no model at nowhere" in fails("quantize", "nowhere", "-q", "nf4-dq", "-o", "out", status=1)


def test_an_empty_folder_as_model(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in fails("bench", "empty", status=1)


def test_an_interpreter_that_is_not_there(fails, tmp_path):
    model(tmp_path / "m")
    assert "no interpreter" in fails("quantize", "m", "-q", "nf4-dq", "-o", "out", "--env", "/nowhere", status=2)


def test_a_folder_that_holds_something_else(fails, tmp_path):
    model(tmp_path / "m")
    words = fails("quantize", "m", "-q", "nf4-dq", "-o", ".", "--env", sys.executable, status=2)
    assert "holds something else" in words


def test_an_nf4_artifact_on_llamacpp(fails, tmp_path):
    artifact(tmp_path / "nf4")
    words = fails("bench", "nf4", "-b", "llamacpp", status=2)
    assert "llamacpp does not load nf4-dq" in words
    assert "hint: --backend hf" in words


def test_an_unknown_backend(fails, tmp_path):
    model(tmp_path / "m")
    assert "unknown backend 'vlmm'" in fails("bench", "m", "-b", "vlmm", status=2)


def test_nothing_to_bench(fails):
    assert "either an artifact or a running server" in fails("bench", status=2)


def test_two_things_to_bench(fails):
    assert "either" in fails("bench", "demo", "--url", "http://127.0.0.1:9/v1", status=2)


def test_a_url_without_a_model(fails):
    assert "--model" in fails("bench", "--url", "http://127.0.0.1:9/v1", status=2)


def test_a_url_that_is_none(fails):
    assert "is no address" in fails("bench", "--url", "localhost:8000", "--model", "m", status=2)


def test_a_url_with_a_port_that_is_none(fails):
    told = fails("bench", "--url", "http://127.0.0.1:99999/v1", "--model", "m", "--json", status=2)
    assert "99999" in told


def test_nobody_at_the_url(fails):
    assert "failed: connection" in fails("bench", "--url", "http://127.0.0.1:9/v1", "--model", "m", status=1)


def test_a_secret_in_a_url_is_not_printed(fails):
    told = fails("bench", "--url", "http://user:secret@127.0.0.1:9/v1?key=secret", "--model", "m", status=1)
    assert "secret" not in told


def test_an_unknown_endpoint(fails):
    assert "unknown endpoint" in fails("bench", "demo", "--endpoint", "chats", status=2)


@pytest.mark.parametrize("option", ["--requests", "--concurrency", "--input-tokens", "--output-tokens"])
def test_numbers_that_make_no_run(fails, option):
    assert f"{option} must be 1 or more" in fails("bench", "demo", option, "0", status=2)


def test_an_engine_that_dies(fails):
    words = fails("bench", "demo", "-b", "scripted", "--extra-arg=--fault", "--extra-arg=die", status=1)
    assert "it was told to die" in words


def test_results_that_cannot_be_written(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fails("bench", "demo", "-b", "scripted", *FAST_RUN, "--results", "file", status=1)


@pytest.mark.parametrize(
    ("slo", "word"),
    [
        ("ttft_p95<500", "needs a unit"),
        ("ttft_p95>500ms", "would reject the better"),
        ("ttfb_p95<5ms", "unknown metric"),
        ("fast", "no constraint"),
    ],
)
def test_a_bad_slo(fails, slo, word):
    assert word in fails("recommend", "--slo", slo, status=2)


def test_an_unknown_objective(fails):
    assert "unknown objective" in fails("recommend", "--optimize", "speed", status=2)


def test_recommending_from_no_folder(fails):
    assert "no results at results" in fails("recommend", status=1)


def test_recommending_from_no_run_is_inconclusive(fails, tmp_path):
    (tmp_path / "results").mkdir()
    assert "no run to recommend from" in fails("recommend", status=4)


def test_recommending_from_a_damaged_run(fails, results):
    next(results.rglob("2*.json")).write_text('{"run_id": ')
    assert "not a whole run record" in fails("recommend", status=1)


def test_a_report_that_cannot_be_written(fails, results, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("recommend", "--out", "file/report.md", status=1)


def test_an_unknown_environment(fails):
    assert "unknown environment" in fails("env", "create", "lokal", status=2)


def test_a_traceback_only_on_request(llmopt):
    told = llmopt("--debug", "recommend")
    assert "Traceback" in told.stderr
    assert "error: no results" in told.stderr


# --- what is right ----------------------------------------------------------------------------------------------


def test_recommend_ranks_what_was_measured(llmopt, results):
    told = llmopt("recommend", results, "--out", "report.md")
    assert told.returncode == 0
    assert told.stdout.index("1. fast on hf") < told.stdout.index("2. slow on hf")
    assert "\x1b" not in told.stdout
    assert "| fast |" in (results.parent / "report.md").read_text()


def test_recommend_as_json_is_one_document(llmopt, results):
    told = llmopt("recommend", results, "--json")
    assert [row["rank"] for row in json.loads(told.stdout)["ranked"]] == [1, 2]
    assert told.stderr == ""


def test_a_goal_that_nothing_meets_is_status_three(llmopt, results):
    told = llmopt("recommend", results, "--slo", "output_tps>9999", "--json")
    assert told.returncode == 3
    assert len(json.loads(told.stdout)["rejected"]) == 2
    assert told.stderr.startswith("error: no configuration meets the goal\nhint: ")


def test_bench_as_json_is_one_document_and_a_record(llmopt, tmp_path):
    told = llmopt("bench", "demo", "-b", "scripted", *FAST_RUN, "--json")
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    assert record["metrics"]["error_rate"] == 0
    (stored,) = (tmp_path / "results").rglob(record["run_id"] + ".json")
    assert json.loads(stored.read_text()) == record


def test_bench_keeps_results_and_progress_apart(llmopt):
    told = llmopt("bench", "demo", "-b", "scripted", *FAST_RUN)
    assert "bf16 on scripted" in told.stdout
    assert "verdict: invalid" in told.stdout  # the fake counts words, not tokens
    assert "measuring bf16 on scripted" in told.stderr
    assert "measuring" not in told.stdout


@pytest.mark.parametrize("command", [("doctor",), ("env", "list")], ids=" ".join)
def test_every_other_command_has_one_document_too(llmopt, command):
    told = llmopt(*command, "--json")
    assert told.returncode == 0
    json.loads(told.stdout)


def test_an_interruption_stops_the_server_and_says_how_to_go_on(tmp_path, environment):
    slow = ("--extra-arg=--tpot-ms", "--extra-arg=500", "--requests", "60", "--warmup-requests", "0")
    command = [sys.executable, "-m", "llmopt", "bench", "demo", "-b", "scripted", *slow]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)  # fmt: skip
    try:
        assert any("measuring" in line for line in iter(process.stderr.readline, ""))
        time.sleep(0.3)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "error: interrupted" in words
    assert "Traceback" not in words
    assert tree
    assert not any(p.is_running() for p in tree)


def test_the_version(llmopt):
    assert llmopt("--version").stdout.startswith("llmopt ")


def test_help_loads_nothing_heavy(environment):
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmopt", "--help"], capture_output=True, text=True, env=environment
    )
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "llmopt.cli" in imported
    assert not imported & {
        "torch",
        "transformers",
        "pandas",
        "numpy",
        "tokenizers",
        "psutil",
        "msgspec",
        "pynvml",
        "h11",
    }
    assert "quantize" in told.stdout
    assert "recommend" in told.stdout
