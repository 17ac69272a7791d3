"""``llmopt bench --url`` through the command line, against the scripted server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmopt import demo, serve
from llmopt.core import environments
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import ServeOptions
from llmopt.serve.process import RunningServer, serving

LLMOPT = [sys.executable, "-m", "llmopt"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    options = ServeOptions(backend="scripted", max_num_seqs=8, extra_args=("--ttft-ms", "30", "--tpot-ms", "4"))
    backend, artifact = serve.backend("scripted"), open_artifact(demo.MODEL)
    with serving(backend, artifact, options, environments.current(), log=tmp_path / "log") as running:
        yield running


def bench(server: RunningServer, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = ["bench", "--url", server.command.base_url, "--model", "scripted", "--results", str(tmp_path / "results")]
    shape = ["--concurrency", "4", "--requests", "64", "--output-tokens", "16"]
    return subprocess.run([*LLMOPT, *argv, *shape, *more], capture_output=True, text=True, timeout=60, check=False)


def test_json_is_one_run_record(server: RunningServer, tmp_path: Path) -> None:
    done = bench(server, tmp_path, "--json")
    record = json.loads(done.stdout)
    assert record["schema"] == 1
    assert record["metrics"]["ttft_s"]["n"] == 64
    assert record["metrics"]["ttft_s"]["p50"] == pytest.approx(0.030, abs=0.015)
    assert record["metrics"]["tpot_s"]["p50"] == pytest.approx(0.004, abs=0.002)
    assert done.stderr == ""


def test_record_on_disk_is_the_one_that_was_printed(server: RunningServer, tmp_path: Path) -> None:
    record = json.loads(bench(server, tmp_path, "--json").stdout)
    (file,) = (tmp_path / "results").glob(f"*/{record['run_id']}.json")
    assert json.loads(file.read_text()) == record


def test_chat_endpoint_is_measured_too(server: RunningServer, tmp_path: Path) -> None:
    record = json.loads(bench(server, tmp_path, "--json", "--endpoint", "chat").stdout)
    assert record["metrics"]["error_rate"] == 0
    assert record["metrics"]["output_tps"] > 0


def test_an_api_key_is_never_stored_or_printed(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOPT_API_KEY", "sk-very-secret")
    done = bench(server, tmp_path)
    assert done.returncode == 0
    stored = "".join(f.read_text() for f in (tmp_path / "results").rglob("*.json"))
    assert "sk-very-secret" not in stored + done.stdout + done.stderr


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [*LLMOPT, "conformance", "--json", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_the_client_passes_its_own_conformance_suite() -> None:
    done = conformance()
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["failed"], document["passed"]) == (0, len(document["traps"]))


def test_a_tool_that_takes_a_cut_stream_for_a_success_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"none": {"ok": 3}, "cut-clean": {"ok": 3}}')
    done = conformance("--result", str(tmp_path / "result.json"))
    assert done.returncode == 3
    assert (json.loads(done.stdout)["passed"], json.loads(done.stdout)["failed"]) == (1, 1)
    assert "1 of 2 traps" in done.stderr
