"""``llmopt tune`` from the command line: steps that run, one that fails, and going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
RECIPE = """
name: small
model: builtin
compare: steps
quality: {tokens: 1536}
cases:
  - step: slow
    backend: scripted
    quantizations: [bf16]
    extra_args: [--ttft-ms, "20", --tpot-ms, "8", --prompt-tokens, "16"]
  - step: broken
    backend: scripted
    quantizations: [bf16]
    extra_args: [--fault, die]
  - step: fast
    backend: scripted
    quantizations: [bf16]
    extra_args: [--ttft-ms, "10", --tpot-ms, "2", --prompt-tokens, "16"]
workload: {input_tokens: 16, output_tokens: 16, concurrency: 2, requests: 64, warmup: 2}
repeats: 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "small.yaml").write_text(RECIPE)
    return folder


def tune(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "llmopt", "tune", str(folder / "small.yaml"), "-o", str(folder / "out"), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False, env=dict(os.environ))


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    return tune(folder, "--json")


def test_each_step_is_compared_with_the_one_before_that_ran(first: subprocess.CompletedProcess[str]) -> None:
    slow, broken, fast = json.loads(first.stdout)["steps"]
    assert slow["runs"] == fast["runs"] == 2
    assert "it was told to die" in broken["failure"]
    assert 2 < fast["change"]["output_tps"]["ratio"] < 6
    assert fast["change"]["output_tps"]["low"] > 1


def test_a_step_that_failed_is_an_error_that_names_it(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 1
    assert "error: 1 of 3 steps could not be measured: broken" in first.stderr
    assert "Traceback" not in first.stderr


def test_the_second_time_measures_only_what_is_missing(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    again = tune(folder)
    assert again.stderr.count("already measured: 2 run(s)") == 2
    assert "broken" in again.stdout
    assert "| fast |" in (folder / "out" / "report.md").read_text()


def test_a_dry_run_starts_nothing(folder: Path) -> None:
    told = tune(folder, "--dry-run")
    assert told.returncode == 0
    assert told.stdout.splitlines()[0].startswith("slow: bf16, --backend scripted")
