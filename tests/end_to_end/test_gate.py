"""The command of issue 7 as it stands: 6 % slower decoding is found, the same address twice is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.serve.scripted import running

LOAD = (
    *("--model", "truth", "--concurrency", "8", "--requests", "60", "--rounds", "6"),
    *("--input-tokens", "32", "--output-tokens", "16", "--json"),
)


@pytest.mark.parametrize(("itl_ms", "statuses"), [("5.3", (3,)), ("5", (0, 4))])
def test_the_command_of_the_issue(tmp_path: Path, itl_ms: str, statuses: tuple[int, ...]) -> None:
    with running() as url:
        server = url.removesuffix("/v1")
        sides = [f"{server}/x/ttft=30,itl={itl}/v1" for itl in ("5", itl_ms)]
        done = subprocess.run(
            [sys.executable, "-m", "llmopt", "gate", *sides, *LOAD], cwd=tmp_path, capture_output=True, text=True, check=False
        )  # fmt: skip
    assert done.returncode in statuses, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_status"] == done.returncode
    if done.returncode == 3:
        (row,) = [m for m in document["cases"][0]["metrics"] if m["name"] == "tpot_p50"]
        assert row["change"] == pytest.approx(0.06, abs=0.015)
