"""The main job through the command line, on the real engines and the bundled model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmopt.core.run_index import load_runs
from tests.processes import gone_within

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
LLMOPT = [sys.executable, "-m", "llmopt"]


def json_of(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*LLMOPT, *arguments, "--json"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Start the demo, kill it with SIGKILL once two runs are saved; returns what was on disk then, by name."""
    err = tmp_path_factory.mktemp("log") / "err"
    with err.open("w") as log:
        process = subprocess.Popen([*LLMOPT, "demo", "--no-setup", "-o", str(folder)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while len(finished(folder)) < 4:
                assert process.poll() is None, err.read_text()
                assert time.monotonic() < deadline, err.read_text()
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    assert gone_within(str(folder), 15), "a server or worker outlived the killed demo"
    return finished(folder)


def finished(folder: Path) -> dict[str, int]:
    """Records and manifests on disk, with their modification times."""
    files = [*folder.glob("results/*/2*.json"), *folder.glob("artifacts/*/llmopt.json")]
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in files if ".partial-" not in str(f)}


@pytest.fixture(scope="module")
def document(folder: Path, kept: dict[str, int]) -> dict[str, Any]:
    """The ranking after the second start."""
    return json_of("demo", "--no-setup", "-o", str(folder))


def test_killed_and_started_again_it_redoes_nothing(
    document: dict[str, Any], kept: dict[str, int], folder: Path
) -> None:
    after = finished(folder)
    assert {name: after[name] for name in kept} == kept
    assert len(load_runs(folder / "results")) == 18


def test_half_made_artifacts_are_cleared_away(document: dict[str, Any], folder: Path) -> None:
    assert not list(folder.glob("artifacts/.*partial*"))


def test_holds_six_configurations_over_two_engines(document: dict[str, Any]) -> None:
    rows = document["ranked"] + document["rejected"]
    assert len({(r["case"]["artifact"]["quantization"], r["case"]["serve"]["backend"]) for r in rows}) == 6
    assert {r["case"]["serve"]["backend"] for r in document["ranked"]} == {"hf", "llamacpp"}


def test_no_headline_metric_is_null(document: dict[str, Any]) -> None:
    for row in document["ranked"]:
        m = row["metrics"]
        for value in (
            m["ttft_s"]["p50"],
            m["ttft_s"]["p95"],
            m["tps"]["p50"],
            m["output_tps"],
            m["requests_per_s"],
            m["peak_rss_bytes"],
        ):
            assert value > 0


def test_quality_orders_as_it_should(document: dict[str, Any]) -> None:
    rows = document["ranked"] + document["rejected"]
    kl = {r["case"]["artifact"]["quantization"]: r["quality"]["kl_mean"] for r in rows}
    assert kl["bf16"] == 0
    assert kl["gguf-q8_0"] < kl["gguf-q4_k_m"]
    assert max(kl.values()) < 0.2


def test_base_has_learned_its_language(document: dict[str, Any]) -> None:
    base = next(r for r in document["ranked"] if r["case"]["artifact"]["quantization"] == "bf16")
    assert base["quality"]["perplexity"] < 20


def test_objective_decides_who_is_first(document: dict[str, Any], folder: Path) -> None:
    for objective, key in (("throughput", "output_tps"), ("memory", "peak_rss_bytes")):
        ranked = json_of("recommend", str(folder / "results"), "--optimize", objective)["ranked"]
        values = [row["metrics"][key] for row in ranked]
        assert values[0] == (max(values) if objective == "throughput" else min(values))


def test_a_limit_rejects_with_its_reason(document: dict[str, Any], folder: Path) -> None:
    found = json_of("recommend", str(folder / "results"), "--max-kl", "0.000001")
    assert [r["case"]["artifact"]["quantization"] for r in found["ranked"]] == ["bf16"]
    assert all(r["because"][0].startswith("kl<=1e-06: measured") for r in found["rejected"])


def test_an_impossible_goal_has_its_own_exit_status(document: dict[str, Any], folder: Path) -> None:
    argv = [*LLMOPT, "recommend", str(folder / "results"), "--slo", "ttft_p95<1us"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "ttft_p95<1us: measured" in done.stdout
    assert done.stderr.startswith("error: no configuration meets the goal")
