"""The command line from outside: what a person types, and what comes back on which stream."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from typer.testing import CliRunner

from llmopt import demo
from llmopt.cli import app
from llmopt.core.store import save_run
from llmopt.serve.process import free_port
from llmopt.serve.scripted import SERVER, running
from unit.make import QUALITY, artifact, model, run

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
    words = fails("quantize", "m", "-q", "int8", "-o", ".", "--env", sys.executable, status=2)
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


@pytest.mark.parametrize(
    "option",
    ["--max-num-seqs=8", "--no-enable-prefix-caching", "--gpu-layers=0", "--backend=vllm", "--port=8000", "--ready-timeout=9", "--env=x"],
)  # fmt: skip
def test_an_option_of_our_own_server_beside_a_url(option):
    told = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9/v1", "--model", "m", option])
    assert told.exit_code == 2
    assert f"{option.partition('=')[0]} would change nothing" in told.stderr
    assert "hint: " in told.stderr


@pytest.mark.parametrize("option", ["--model=m", "--header=X-Tenant: a", "--tokenizer=x"])
def test_an_option_of_a_running_server_beside_an_artifact(option):
    told = CliRunner().invoke(app, ["bench", "demo", option])
    assert (told.exit_code, f"{option.partition('=')[0]} is for a server that runs" in told.stderr) == (2, True)


def test_a_url_that_is_none(fails):
    assert "is no address" in fails("bench", "--url", "localhost:8000", "--model", "m", status=2)


def test_a_url_with_a_port_that_is_none(fails):
    told = fails("bench", "--url", "http://127.0.0.1:99999/v1", "--model", "m", "--json", status=2)
    assert "99999" in told


def test_nobody_at_the_url(fails):
    words = fails("bench", "--url", "http://127.0.0.1:9/v1", "--model", "m", status=1)
    assert "error: no connection to 127.0.0.1:9: connection refused" in words


def test_a_secret_in_a_url_is_not_printed(fails):
    told = fails("bench", "--url", "http://user:secret@127.0.0.1:9/v1?key=secret", "--model", "m", status=1)
    assert "secret" not in told


def test_an_unknown_endpoint(fails):
    assert "unknown endpoint" in fails("bench", "demo", "--endpoint", "chats", status=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "1000000"], "more than 1 client process"),
        (["--rate", "0"], "--rate must be more than 0"),
        (["--ramp", "x"], "--ramp 'x' is no ramp"),
        (["--slo", "nonsense"], "'nonsense' is no constraint"),
        (["--until", "nonsense"], "'nonsense' is no stopping rule"),
        (["--sweep", "--concurrency", "4"], "sets the rate itself"),
        (["--search"], "needs to know what must hold"),
        (["--sweep", "--search"], "different questions"),
        (["--rate", "5", "--concurrency", "4"], "different loads"),
        (["--input-tokens", "uniform:9:3"], "--input-tokens 'uniform:9:3' is no length"),
        (["--output-tokens", "many"], "--output-tokens 'many' is no length"),
        (["--header", "bad"], "--header is not of the form"),
        (["--workers", "0"], "--workers must be between"),
        (["--definitions", "nope"], "no definitions of 'nope'"),
        (["--warmup", "some"], "--warmup must be"),
        (["--arrival", "bursty"], "unknown arrival"),
        (["--max-concurrency", "4"], "caps an open loop"),
        (["--request-timeout", "0"], "--request-timeout must be more than 0"),
        (["--tokenizer", "nowhere"], "no tokenizer at nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_run_are_said_before_anything_is_sent(tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9/v1", "--model", "m", *options])
    error, hint = told.stderr.splitlines()
    assert (told.exit_code, told.stdout) == (2, "")
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")


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


def test_recommending_from_damaged_runs_alone(fails, results):
    for record in results.rglob("2*[0-9a-f].json"):
        record.write_text('{"run_id": ')
    told = fails("recommend", status=1)
    assert "not a whole run record" in told
    assert "1 more file" in told


def test_recommending_from_runs_of_another_schema(fails, results):
    for record in results.rglob("2*[0-9a-f].json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": 2}))
    assert "it has schema 2, and this llmopt reads 1" in fails("recommend", status=1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--slo", "ttft_p95<0ms"], "contradicts itself"),
        (["--slo", "slo_attainment>100%"], "contradicts itself"),
        (["--backends", "hf", "--exclude", "hf"], "contradict each other"),
        (["--backends", "vlm"], "no run here is of that"),
        (["--backends", "hf,vlm"], "--backends vlm: no run here is of that"),
        (["--exclude", "typo,hf"], "--exclude typo: no run here is of that"),
        (["--slo", "task_score>0.5"], "is the score of a task"),
        (["--utilisation", "9"], "needs --api-price-input and --api-price-output and --monthly-tokens"),
        (["--optimize", "cost"], "needs the price"),
        (["--max-cost", "2"], "needs the price"),
        (["--price-per-hour", "-1"], "more than 0"),
        (["--api-price-input", "1"], "needs --api-price-output and --monthly-tokens"),
        (["--min-score", "mmlu"], "no score to keep"),
        (["--baseline", "bf17"], "no run that can be compared"),
    ],
)
def test_a_goal_that_makes_no_sense(fails, results, options, word):
    assert word in fails("recommend", *options, status=2)


def test_a_report_that_cannot_be_written(fails, results, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("recommend", "--out", "file/report.md", status=1)


def test_an_unknown_environment(fails):
    assert "unknown environment" in fails("env", "create", "lokal", status=2)


def test_a_traceback_only_on_request(llmopt):
    told = llmopt("--debug", "recommend")
    assert "Traceback" in told.stderr
    assert "error: no results" in told.stderr


# --- a server that is not what it should be ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    """A server that knows one model and wants a key."""
    with running("--only-model", "truth", "--api-key", "sk-right", "--ttft-ms", "5", "--tpot-ms", "1") as base_url:
        yield base_url


@pytest.fixture
def bench(fails, server, environment):
    """``llmopt bench`` of that server, which must fail: what it said. The key is the right one unless told otherwise."""

    def call(*options, model="truth", url=server, key="sk-right", status=1):
        environment["LLMOPT_API_KEY"] = key
        started = time.monotonic()
        words = fails("bench", "--url", url, "--model", model, *options, status=status)
        assert time.monotonic() - started < 20
        assert "sk-" not in words
        return words

    return call


def test_an_unknown_host(bench):
    assert "no connection to no-such-host.invalid:80" in bench(url="http://no-such-host.invalid/v1")


def test_a_wrong_path(bench, server):
    words = bench(url=server.replace("/v1", "/scripted/nowhere"))
    assert "http_404: no such path" in words
    assert "hint: is the path right" in words


def test_a_wrong_key(bench):
    words = bench(key="sk-wrong")
    assert "http_401: wrong API key" in words
    assert "hint: put the key into LLMOPT_API_KEY" in words


def test_a_model_that_the_server_lacks(bench):
    words = bench(model="nope")
    assert "http_404: The model `nope` does not exist" in words
    assert "it lists: scripted, truth" in words


@pytest.mark.parametrize("trap", ["html", "json-body"])
def test_a_server_that_speaks_something_else(bench, trap):
    words = bench(model=f"truth?trap={trap}")
    assert "bad_stream: " in words
    assert "hint: is this an OpenAI-compatible server" in words


@pytest.mark.parametrize("trap", ["endless", "hang"])
def test_an_answer_that_never_ends(bench, trap):
    words = bench("--request-timeout", "1", model=f"truth?trap={trap}")
    assert "timeout: no end within 1 s" in words
    assert "--request-timeout" in words


def test_a_stream_that_falls_silent(bench):
    words = bench("--stall-timeout", "1", "--requests", "2", model="truth?trap=hang-middle")
    assert "stalled: no byte for 1 s" in words


def test_a_server_that_cuts_every_stream(bench):
    assert "cut: no finish_reason" in bench(model="truth?trap=cut-clean")


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--trace", None, "no trace at"),
        ("--trace", '{"arrival_s": 0, "prompt": "a"}\n{"arrival_s": 1}', "line 2: neither a prompt nor input_tokens"),
        ("--dataset", None, "no file"),
        ("--dataset", '{"prompt": "a"}\nnonsense', "line 2: no JSON"),
    ],
)
def test_a_file_that_is_missing_or_bad(bench, tmp_path, option, text, words):
    if text is not None:
        (tmp_path / "data.jsonl").write_text(text)
    assert words in bench(option, "data.jsonl", status=2)


def test_what_was_measured_before_the_server_died_is_kept(llmopt, tmp_path):
    port = free_port(None)
    process = subprocess.Popen([sys.executable, SERVER, "--port", str(port), "--ttft-ms", "5", "--tpot-ms", "1"])
    try:
        threading.Timer(2.5, process.kill).start()
        url = f"http://127.0.0.1:{port}/v1"
        time.sleep(0.5)
        told = llmopt("bench", "--url", url, "--model", "m", "--requests", "2000", "--warmup", "0", "--json")
    finally:
        process.kill()
        process.wait()
    record = json.loads(told.stdout)
    assert record["metrics"]["requests_ok"] > 10
    assert record["metrics"]["errors"]["refused"] > 10
    assert record["verdict"]["status"] == "invalid"


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


def test_quality_that_was_measured_after_the_run_counts(llmopt, tmp_path):
    found = artifact(tmp_path / "weights")
    record = run("nf4-dq", quality=None)
    record = replace(record, artifact=record.artifact | {"path": found.path, "key": found.key})
    save_run(tmp_path / "results", record, [])
    save_run(tmp_path / "results", run("of no path", quality=None), [])
    proof = {"key": found.key, "quality": QUALITY | {"kl_mean": 0.0123}}
    (tmp_path / "weights" / "quality.json").write_text(json.dumps(proof))
    rows = json.loads(llmopt("recommend", tmp_path / "results", "--json").stdout)["ranked"]
    assert {row["label"]: row["metrics"]["kl"] for row in rows} == {"nf4-dq on hf": 0.0123, "of no path on hf": None}


def test_a_damaged_run_is_skipped_and_named(llmopt, results):
    record = sorted(results.rglob("2*[0-9a-f].json"))[0]
    record.write_text('{"run_id": ')
    told = llmopt("recommend", results, "--json")
    assert told.returncode == 0
    document = json.loads(told.stdout)
    assert document["files_skipped"] == 1
    assert document["skipped"][0]["file"].endswith(record.name)
    assert "1 file skipped" in told.stderr


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


@pytest.mark.parametrize(
    "options",
    [
        ["--concurrency", "2", "--tokenizer", str(demo.MODEL), "--warmup", "0"],
        ["--rate", "200", "--arrival", "poisson", "--max-concurrency", "8", "--warmup", "0"],
        ["--ramp", "50:100", "--slo", "ttft<1s", "--endpoint", "chat"],
        ["--turns", "2", "--think", "0.01", "--workers", "2", "--definitions", "vllm"],
        ["--input-tokens", "uniform:8:16", "--header", "X-Tenant: a", "--retries", "2"],
    ],
    ids=["closed", "open", "ramp", "turns", "lengths"],
)
def test_every_load_shape_gives_one_document(llmopt, server, environment, options):
    environment["LLMOPT_API_KEY"] = "sk-right"
    told = llmopt(
        "bench", "--url", server, "--model", "truth", "--requests", "12", "--output-tokens", "4", *options, "--json"
    )
    record = json.loads(told.stdout)
    assert (record["metrics"]["requests_ok"], record["metrics"]["errors"]) == (12, {})
    assert record["client"]["stamps"] == "kernel"
    assert told.stderr == ""


def test_a_search_that_found_nothing_is_status_three(llmopt, server, environment):
    environment["LLMOPT_API_KEY"] = "sk-right"
    told = llmopt(
        "bench", "--url", server, "--model", "truth", "--search", "--slo", "ttft_p90<1us", "--rate", "500", "--requests", "4",
        "--json",
    )  # fmt: skip
    assert told.returncode == 3
    assert json.loads(told.stdout)["best"] is None
    assert "error: no rate meets the SLOs" in told.stderr


def test_an_interrupted_run_is_kept(tmp_path, environment, server):
    argv = [
        sys.executable,
        "-m",
        "llmopt",
        "bench",
        "--url",
        server,
        "--model",
        "truth?tpot_ms=20",
        "--requests",
        "5000",
    ]
    environment["LLMOPT_API_KEY"] = "sk-right"
    process = subprocess.Popen(
        [*argv, "--warmup", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert any("measuring" in line for line in iter(process.stderr.readline, ""))
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "error: interrupted; the" in words
    (record,) = (tmp_path / "results").rglob("2*.json")
    assert json.loads(record.read_text())["metrics"]["requests_ok"] > 4


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
