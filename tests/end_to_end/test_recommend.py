"""Load curves that were really measured, on the scripted server, whose speed and number of slots are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmopt.serve.scripted import running

LLMOPT = [sys.executable, "-m", "llmopt"]
SLOTS, TTFT_MS = 4, 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One server of four slots under one, four and sixteen users."""
    folder = tmp_path_factory.mktemp("curves")
    with running("--ttft-ms", str(TTFT_MS), "--tpot-ms", "2", slots=SLOTS) as url:
        for users in (1, 4, 16):
            options = ("--concurrency", str(users), "--requests", "96", "--output-tokens", "16", "--warmup", "8")
            command = [
                *LLMOPT,
                "bench",
                "--url",
                url,
                "--model",
                "scripted",
                *options,
                "--results",
                str(folder),
                "--json",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    return folder


def asked(results: Path, *options: str, status: int = 0) -> dict[str, Any]:
    command = [*LLMOPT, "recommend", str(results), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_runs_at_three_loads_are_one_curve(results: Path) -> None:
    (row,) = asked(results)["ranked"]
    assert [point["level"] for point in row["curve"]] == [1, 4, 16]


def test_the_slo_is_kept_up_to_as_many_users_as_there_are_slots(results: Path) -> None:
    (row,) = asked(results, "--slo", "ttft_p50<70ms")["ranked"]
    assert row["point"]["load"] == "4 users"
    assert row["metrics"]["ttft_s"]["p50"] == pytest.approx(TTFT_MS / 1000, rel=0.5)


def test_a_token_is_priced_at_that_load(results: Path) -> None:
    (strict,) = asked(results, "--slo", "ttft_p50<70ms", "--price-per-hour", "3.6")["ranked"]
    assert strict["cost"]["per_1m_output_tokens"] == pytest.approx(1000 / strict["metrics"]["output_tps"])


def test_more_users_than_slots_queue(results: Path) -> None:
    (row,) = asked(results, "--slo", "ttft_p50<10s")["ranked"]
    assert row["point"]["load"] == "16 users"
    assert "queueing" in [found["code"] for found in row["diagnosis"]]


def test_a_wish_that_no_load_meets_says_what_must_give(results: Path) -> None:
    found = asked(results, "--slo", "ttft_p50<1ms", status=3)
    assert found["relaxation"]["binding"] == ["ttft_p50<1ms"]
    assert found["relaxation"]["each"][0]["to"] == pytest.approx(TTFT_MS / 1000, rel=0.5)
