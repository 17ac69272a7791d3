"""``llmopt tune MODEL`` from the command line, on the scripted server: a race, going on, a crash, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SPEED = [f"--extra-arg={word}" for word in ("--prompt-tokens", "16", "--ttft-ms", "5", "--tpot-ms", "2")]
SPACE = ["--quants", "bf16,gguf-q8_0", "--backends", "scripted,llamacpp", "--knob", "max_num_seqs=1,8"]
LOAD = ["--input-tokens", "16", "--output-tokens", "16", "--concurrency", "1,8", "--requests", "40"]


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "llmopt", "tune", "builtin", *LOAD, "-o", str(out), *options]


def tune(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *options), capture_output=True, text=True, timeout=120, check=False)


def race(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    knobs = ("--quants", "bf16", "--backends", "scripted", "--knob", "max_num_seqs=1,8", "--budget", "2min")
    return tune(out, *knobs, *SPEED, *options)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune") / "out"


@pytest.fixture(scope="module")
def first(out: Path) -> subprocess.CompletedProcess[str]:
    return race(out, "--json")


def test_the_one_that_serves_more_at_once_wins(first: subprocess.CompletedProcess[str], out: Path) -> None:
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["race"]["settled"] == "one is left"
    assert [row["arm"] for row in document["race"]["survivors"]] == ["bf16 on scripted, max_num_seqs 8"]
    assert document["ranking"]["ranked"][0]["case"]["serve"]["max_num_seqs"] == 8
    assert "## The race" in (out / "report.md").read_text()


def test_every_record_names_its_round(first: subprocess.CompletedProcess[str], out: Path) -> None:
    records = [json.loads(file.read_text()) for file in (out / "results").rglob("2*.json")]
    assert min(record["race"]["round"] for record in records) == 1
    assert {record["workload"]["concurrency"] for record in records} == {1, 8}


def test_the_second_start_measures_nothing_again(first: subprocess.CompletedProcess[str], out: Path) -> None:
    again = json.loads(race(out, "--json").stdout)
    assert again["race"]["visits"] == 0
    assert again["ranking"]["ranked"] == json.loads(first.stdout)["ranking"]["ranked"]


def test_a_crash_is_a_result_that_is_not_repeated(tmp_path: Path) -> None:
    fault = ("--extra-arg=--fault", "--extra-arg=die")
    for start in (1, 2):
        told = race(tmp_path / "out", *fault)
        assert told.returncode == 4
        assert "it was told to die" in told.stderr
        assert "Traceback" not in told.stderr
        assert ("starting scripted" in told.stderr) == (start == 1)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = command(out, "--quants", "bf16", "--backends", "scripted", "--knob", "max_num_seqs=1,8", *SPEED)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not list((out / "results").rglob("*.traces.json.gz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    servers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert f"hint: the same command with -o {out} goes on" in told
    assert not psutil.wait_procs(servers, timeout=10)[1]
    kept = {file.name for file in (out / "results").rglob("2*.json")}
    assert race(out).returncode == 0
    assert kept < {file.name for file in (out / "results").rglob("2*.json")}


def test_a_limit_that_nobody_keeps_is_a_result_too(tmp_path: Path) -> None:
    told = race(tmp_path / "out", "--slo", "ttft_p50<1ms")
    assert told.returncode == 3
    assert "ttft_p50<1ms: measured" in told.stdout


def test_a_dry_run_lists_what_would_be_measured_and_why_the_rest_not(tmp_path: Path) -> None:
    told = tune(tmp_path / "out", *SPACE, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "gguf-q8_0 on llamacpp, max_num_seqs 8: --backend llamacpp --max-num-seqs 8" in told.stdout
    assert "not measured: bf16 on llamacpp: llamacpp does not load bf16" in told.stdout
    assert not (tmp_path / "out").exists()


def test_ranges_are_searched_and_taken_up(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out, short = (
        tmp_path / "out",
        ("--knob", "max_num_seqs=1:4", "--concurrency", "4", "--requests", "20", "--budget", "12s"),
    )
    options = ("--quants", "bf16", "--backends", "scripted", *SPEED, *short)
    assert tune(out, *options).returncode == 0
    proposed = json.loads((out / "tune.json").read_text())["proposed"]
    assert {p["values"][0][1] for p in proposed} <= {1, 2, 3, 4}
    again = json.loads(tune(out, *options, "--json").stdout)
    assert (
        again["race"]["survivors"][0]["arm"] == "bf16 on scripted"
    )  # served with four: nothing that was proposed is better


def test_the_budget_ends_a_curve_between_two_loads(tmp_path: Path) -> None:
    slow = (
        "--quants",
        "bf16",
        "--backends",
        "scripted",
        "--concurrency",
        "1,2,4,8",
        "--requests",
        "60",
        "--budget",
        "6s",
    )
    started = time.monotonic()
    told = tune(tmp_path / "out", *slow, *[*SPEED, "--extra-arg=--tpot-ms", "--extra-arg=4"], "--json")
    assert time.monotonic() - started < 25
    document = json.loads(told.stdout)
    assert document["ended"] == "the budget ended"
    assert document["race"]["survivors"] == []  # half a curve says nothing of the best load
    assert len(document["ranking"]["ranked"][0]["curve"]) < 4
