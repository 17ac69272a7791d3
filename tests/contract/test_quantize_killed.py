"""A worker that is killed in any phase leaves one clear line, no half result, and nothing to be made twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llmopt.core.artifacts import MANIFEST, open_artifact
from tests.processes import gone_within

pytestmark = pytest.mark.engine
NAME = "w8a8-int8"
DEADLINE_S = 120


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


def start(out: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "llmopt", "quantize", "demo", "-q", NAME, "-o", str(out)]
    return subprocess.Popen(
        [*argv, "--samples", "8", "--tokens", "2048"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        lines = {p: p.cmdline() for p in below}
        return [p for p, words in lines.items() if any(w.endswith("runner.py") for w in words) and not kept(words)]
    except psutil.NoSuchProcess:
        return []


def kept(words: list[str]) -> bool:
    """The keeper's own command line names the worker's too."""
    return any(word.endswith("keeper.py") for word in words)


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool], count: int) -> None:
    """SIGKILL all ``count`` workers of a running command the moment that the phase has come."""
    deadline = time.monotonic() + DEADLINE_S
    while not (ready() and len(workers(process)) == count):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for worker in workers(process):
        worker.send_signal(signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, [line for line in errors.splitlines() if line.startswith(("error:", "hint:"))]


def test_killed_in_three_phases_and_right_in_the_end(out: Path) -> None:
    quantize_log = out.parent / "logs" / f"quantize-{NAME}.log"
    proof_log = out.parent / "logs" / f"quality-{NAME}.log"
    phases: dict[str, Callable[[], bool]] = {
        "loading": lambda: quantize_log.exists() and "/" not in said(quantize_log),
        "quantizing": lambda: "(" in said(quantize_log) and "/" in said(quantize_log),
        "proof": lambda: "comparing" in said(proof_log),
    }
    for phase, ready in phases.items():
        quantize_log.unlink(missing_ok=True)
        proof_log.unlink(missing_ok=True)
        process = start(out)
        kill_when(process, ready, 1 if phase == "proof" else 2)  # until then its worker waits beside the other
        status, lines = ended(process)
        assert status == 1, phase
        assert len(lines) == 2
        assert "was killed (SIGKILL), most likely because memory ran out" in lines[0]
        assert not out.exists()
        half = [p for p in out.parent.iterdir() if p.name not in ("logs",)]
        assert [p for p in half if not (p / MANIFEST).exists()] == [], phase
        assert bool(half) == (phase == "proof")  # whole weights are kept for the next start
    last = start(out)
    _, errors = last.communicate(timeout=DEADLINE_S)
    assert last.returncode == 0, errors
    assert "only needs its proof" in errors
    assert f"quantizing {NAME}" not in errors
    assert open_artifact(out).quantization.name == NAME
    assert json.loads((out / "quality.json").read_text())["quality"]["kl_mean"] < 0.1
    assert sorted(p.name for p in out.parent.iterdir()) == ["artifact", "logs"]
    assert gone_within(str(out.parent), 5)


def said(log: Path) -> str:
    """Progress lines of a job's log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines if line.startswith("("))


def test_killed_itself_during_the_proof_only_the_proof_is_made_again(out: Path) -> None:
    proof_log = out.parent / "logs" / f"quality-{NAME}.log"
    first = start(out)
    deadline = time.monotonic() + DEADLINE_S
    while "comparing" not in said(proof_log):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert gone_within(str(out.parent), 10)
    assert not out.exists()
    second = start(out)
    _, errors = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, errors
    assert "only needs its proof" in errors
