"""``llmopt verify`` and ``llmopt watch`` from the command line, on the scripted server, whose speed is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmopt.core.process import KeptProcess
from llmopt.serve.process import free_port
from llmopt.serve.scripted import SERVER, running

LOAD = ("--concurrency", "4", "--requests", "64", "--input-tokens", "32", "--output-tokens", "16")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as address:
        yield address.removesuffix("/v1")


def llmopt(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmopt", *argv], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def promised(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of a server that takes 20 ms to a first token, and 2 ms for each other."""
    folder = tmp_path_factory.mktemp("promise")
    argv = ("bench", "--url", f"{server}/x/ttft=20,itl=2/v1", "--model", "truth", *LOAD, "--results", "runs")
    for _ in range(3):
        done = llmopt(*argv, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "runs"


def verify(server: str, script: str, promised: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    url = f"{server}/x/{script}/v1"
    slos = ("--slo", "ttft_p95<40ms", "--slo", "tpot_p95<4ms")
    return llmopt(
        "verify", url, "--against", str(promised), "--model", "truth", "--rounds", "3", *slos, *more, cwd=folder
    )


def test_what_was_promised_is_kept(server: str, promised: Path, tmp_path: Path) -> None:
    done = verify(server, "ttft=20,itl=2", promised, tmp_path, "--json")
    found = json.loads(done.stdout)
    assert done.returncode in (0, 4), done.stdout  # another process may have the machine for a moment
    assert found["levels"][0]["failed"] == 0
    assert {row["text"] for row in found["levels"][0]["slos"]} == {"ttft_p95<40ms", "tpot_p95<4ms"}


def test_an_endpoint_twice_as_slow_is_a_regression(server: str, promised: Path, tmp_path: Path) -> None:
    done = verify(server, "ttft=80,itl=2", promised, tmp_path)
    assert done.returncode == 3, done.stdout
    assert done.stdout.startswith("REGRESSION: ttft_p95<40ms is missed")


def test_half_of_two_replicas_is_the_capacity_that_is_left(promised: Path, tmp_path: Path) -> None:
    """Two were deployed and one is gone: eight users share what four were promised, four find it as it should be."""
    with running(slots=4) as address:
        alone = address.removesuffix("/v1")
        done = verify(alone, "ttft=20,itl=2", promised, tmp_path, "--replicas", "2", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3, done.stdout
    assert [level["replicas"] for level in found["levels"]] == [2, 1]
    assert found["capacity"]["share"] == pytest.approx(0.5, abs=0.15)


def test_nobody_there_is_an_error_with_a_hint(promised: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port(None)}/v1"
    done = llmopt("verify", url, "--against", str(promised), "--model", "truth", cwd=tmp_path)
    assert done.returncode == 1
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_url_alone_is_held_to_nothing(tmp_path: Path) -> None:
    done = llmopt("verify", "http://127.0.0.1:1/v1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--against" in done.stderr


def test_a_canary_counts_what_a_user_sees(server: str, promised: Path, tmp_path: Path) -> None:
    port = free_port(None)
    argv = ("watch", f"{server}/x/ttft=80,itl=2/v1", "--against", str(promised), "--model", "truth", "--every", "0.3")
    slos = ("--slo", "ttft_p95<40ms", "--slo", "tpot_p95<4ms")
    child = subprocess.Popen(
        [sys.executable, "-m", "llmopt", *argv, *slos, "--port", str(port)],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        page = wait_for(port, 'llmopt_probe_requests_total{outcome="ok"}', 3)
    finally:
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert (
        page['llmopt_probe_slo_missed_total{slo="ttft_p95"}'] == page['llmopt_probe_slo_requests_total{slo="ttft_p95"}']
    )
    assert page['llmopt_probe_slo_missed_total{slo="tpot_p95"}'] <= 1
    assert page['llmopt_probe_ttft_seconds_bucket{le="0.04"}'] == 0
    assert page["llmopt_probe_up"] == 1
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said


def test_each_probe_is_a_request_of_its_own(promised: Path, tmp_path: Path) -> None:
    """The canary is there before the server, and after it."""
    page_at, served_at = free_port(None), free_port(None)
    url = f"http://127.0.0.1:{served_at}/v1"
    argv = ("watch", url, "--against", str(promised), "--model", "truth", "--every", "0.2", "--port", str(page_at))
    ok, failed = (f'llmopt_probe_requests_total{{outcome="{outcome}"}}' for outcome in ("ok", "failed"))
    child = subprocess.Popen(
        [sys.executable, "-m", "llmopt", *argv], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert wait_for(page_at, failed, 2)["llmopt_probe_up"] == 0
        with KeptProcess((sys.executable, str(SERVER), "--port", str(served_at)), log=tmp_path / "log"):
            answered = wait_for(page_at, ok, 3)
            assert answered["llmopt_probe_up"] == 1
            assert page_of(served_at)['scripted:e2e_time_count{model_name="scripted"}'] >= 3
        gone = wait_for(page_at, failed, answered[failed] + 2)
        assert gone["llmopt_probe_up"] == 0
    finally:
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert "answered again" in said


def page_of(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).read().decode()
    return {n: float(v) for line in text.splitlines() if line[:1] != "#" for n, _, v in [line.rpartition(" ")]}


def wait_for(port: int, name: str, least: float) -> dict[str, float]:
    """The page of metrics once a counter is as high; read again and again for 30 s at most."""
    import time

    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            page = page_of(port)
        except OSError:
            time.sleep(0.1)
            continue
        if page.get(name, 0) >= least:
            return page
        time.sleep(0.1)
    raise AssertionError(f"{name} did not reach {least}")


def test_a_port_that_is_taken_is_said(server: str, promised: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = llmopt(
            "watch", f"{server}/v1", "--against", str(promised), "--model", "truth", "--port", port, cwd=tmp_path
        )
    assert done.returncode == 2
    assert "hint: another --port" in done.stderr
