"""A gate that is cut short: what is whole is kept, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from llmopt.bench.workload import make_workload
from llmopt.core.errors import Interrupted
from llmopt.gate.thresholds import parse_thresholds
from llmopt.pipeline import gating
from llmopt.pipeline.experiment import Experiment
from llmopt.pipeline.gate_question import Question
from llmopt.pipeline.sides import Contestant, Ways
from llmopt.report.progress import Reporter
from llmopt.serve.process import free_port
from llmopt.serve.scripted import SERVER
from tests.unit.gate.blocks import blocks

SMALL = ("--model", "truth", "--requests", "8", "--concurrency", "4", "--input-tokens", "16", "--output-tokens", "8")
PATIENCE_S = 60


class Scripted:
    """A server that can be killed and started again at its address."""

    def __init__(self) -> None:
        self.port = free_port(None)
        self.url = f"http://127.0.0.1:{self.port}/x/ttft=5,itl=1/v1"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(SERVER), "--port", str(self.port)])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server():
    one = Scripted()
    yield one
    one.kill()


@pytest.fixture
def gate(tmp_path):
    """Starts the command; whoever asks waits for its end."""
    started = []

    def call(server: Scripted, *options: str) -> subprocess.Popen[str]:
        # Of a server against itself one gate in a hundred would be a false alarm, as is promised: not what is tested here.
        sure = ("--confidence", "0.999999")
        argv = [sys.executable, "-m", "llmopt", "gate", server.url, server.url, *SMALL, "--rounds", "5"]
        process = subprocess.Popen(
            [*argv, *sure, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"LLMOPT_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def wait_for_blocks(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the gate's state has so many blocks, and the next one is under way."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if done_blocks(folder) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} blocks: {process.communicate()}")


def done_blocks(folder: Path) -> int:
    return max((len(json.loads(f.read_text())["blocks"]) for f in folder.glob("results/gates/*.json")), default=0)


def test_a_server_that_dies_in_round_3_is_inconclusive_and_the_same_command_goes_on(server, gate, tmp_path):
    first = gate(server)
    wait_for_blocks(tmp_path, 2, first)
    server.kill()
    out, words = first.communicate(timeout=PATIENCE_S)
    assert (first.returncode, out) == (4, ""), words
    assert "went away in block 3" in words
    assert "hint: the 2 block(s) before are kept" in words
    assert done_blocks(tmp_path) == 2
    server.start()
    second = gate(server)
    out, words = second.communicate(timeout=PATIENCE_S)
    assert "going on after block 2" in words
    assert second.returncode in (0, 4)
    assert "of at most 5 blocks" in out
    assert done_blocks(tmp_path) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_a_block_it_keeps_those_before(server, gate, tmp_path, number):
    first = gate(server, "--json")
    wait_for_blocks(tmp_path, 1, first)
    first.send_signal(number)
    out, words = first.communicate(timeout=PATIENCE_S)
    assert (first.returncode, out) == (128 + number, ""), words
    assert "Traceback" not in words
    assert not psutil.pid_exists(first.pid)
    assert done_blocks(tmp_path) >= 1
    second = gate(server, "--json")
    out, words = second.communicate(timeout=PATIENCE_S)
    assert second.returncode in (0, 4), words
    assert json.loads(out)["cases"][0]["blocks"] == 5


def test_ctrl_c_says_in_which_block_it_was(server, gate, tmp_path):
    first = gate(server)
    wait_for_blocks(tmp_path, 1, first)
    first.send_signal(signal.SIGINT)
    _, words = first.communicate(timeout=PATIENCE_S)
    assert re.search("interrupted (in|after) block", words), words
    assert "hint: the same command goes on" in words


def test_ctrl_c_between_two_blocks_says_after_which(tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gating, "judge", stopped)
    monkeypatch.setattr(Experiment, "taken_up", lambda _: blocks(2))
    workload = make_workload(requests=8, concurrency=4)
    side = Contestant(label="it", identity="it", workload=workload, restarts=True, opened=lambda _: nullcontext())
    ways = Ways(results=tmp_path, work=tmp_path, workload=workload, report=Reporter(quiet=True))
    with pytest.raises(Interrupted, match="interrupted after block 0: what was measured is kept"):
        gating.experiment(side, side, ways, Question(thresholds=parse_thresholds([]), quality=()))
