"""llmopt's own load client against the truth of the scripted server: every figure that we hold ourselves to.

    python benchmarks/load_client/figures.py [--out benchmarks/load_client/figures.md] [--repeats 3]

Reported figures come from `llmopt bench --json`, as a user gets them; true ones from the server's log of the same run.
Each row is measured several times: the table shows the median and, in brackets, all of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core.machine import this_machine
from llmopt.core.statistics import percentile
from llmopt.serve.scripted import running

LLMOPT = [sys.executable, "-m", "llmopt"]
SHAPE = ["--model", "truth", "--warmup", "0", "--input-tokens", "32", "--json"]
TOKENIZER = ["--tokenizer", str(demo.MODEL)]


@dataclass(frozen=True)
class Run:
    """What llmopt reported, what the server did, and what it cost."""

    record: dict[str, Any]
    truth: list[dict[str, Any]]
    started_ns: int

    def ttft(self, level: str) -> float:
        return float(self.record["metrics"]["ttft_s"][level])

    def true_ttft(self, level: float) -> float:
        return percentile([(r["token_ns"][0] - r["received_ns"]) / 1e9 for r in self.truth], level)


@dataclass(frozen=True)
class Figure:
    """One row: ``value`` of a run, and the bound it must keep."""

    name: str
    unit: str
    bound: float
    value: Callable[[Run], float]
    at_least: bool = False


def error_ms(level: str, share: float) -> Callable[[Run], float]:
    return lambda run: abs(run.ttft(level) - run.true_ttft(share)) * 1e3


def rate_error(rate: float) -> Callable[[Run], float]:
    """Arrivals as the server saw them, against the rate that was asked for, in per cent."""

    def value(run: Run) -> float:
        at = sorted(r["received_ns"] for r in run.truth)
        return abs((len(at) - 1) / (at[-1] - at[0]) * 1e9 / rate - 1) * 100

    return value


def planned_ttft_error(rate: float) -> Callable[[Run], float]:
    """p99 from the planned time, against the server's log: request i was planned at the first arrival + i / rate."""

    def value(run: Run) -> float:
        first = min(r["received_ns"] for r in run.truth)
        index = {r["request_id"]: int(r["request_id"].rpartition("-")[2]) for r in run.truth}
        true = [(r["token_ns"][0] - first) / 1e9 - index[r["request_id"]] / rate for r in run.truth]
        return abs(run.ttft("p99") / percentile(true, 99) - 1) * 100

    return value


def schedule_error_ms(rate: float) -> Callable[[Run], float]:
    """p99 of how far each arrival at the server lay from the schedule that begins with the first one, in ms."""

    def value(run: Run) -> float:
        arrived = {int(r["request_id"].rpartition("-")[2]): r["received_ns"] for r in run.truth}
        first = min(at - index / rate * 1e9 for index, at in arrived.items())
        return percentile([(at - index / rate * 1e9 - first) / 1e6 for index, at in arrived.items()], 99)

    return value


def chunk_rate(run: Run) -> float:
    """Chunks a second between the first and the last that the server wrote, as far as they were received whole."""
    whole = [r for r in run.truth if r["ended"] == "whole"]
    first, last = min(r["token_ns"][0] for r in whole), max(r["token_ns"][-1] for r in whole)
    return sum(len(r["token_ns"]) for r in whole) / (last - first) * 1e9


def cpu_per_100k(run: Run) -> float:
    """Client seconds of processor time in the load phase for 100,000 chunks that the server wrote."""
    return float(run.record["client"]["cpu_s"]) / sum(len(r["token_ns"]) for r in run.truth) * 1e5


def startup_s(run: Run) -> float:
    return (min(r["received_ns"] for r in run.truth) - run.started_ns) / 1e9


SLOW = ("--ttft-ms", "50", "--tpot-ms", "10", "--prompt-tokens", "32")
FAST = ("--ttft-ms", "50", "--tpot-ms", "1", "--prompt-tokens", "32")
CASES: tuple[tuple[str, tuple[str, ...], int, list[str], tuple[Figure, ...]], ...] = (
    (
        "c = 1, 64 tokens 10 ms apart",
        SLOW, 4096, [*TOKENIZER, "--concurrency", "1", "--requests", "64", "--output-tokens", "64"],
        (Figure("TTFT p50 error", "ms", 0.3, error_ms("p50", 50)), Figure("start to first request", "s", 0.5, startup_s)),
    ),
    (
        "c = 64, 64 tokens 10 ms apart",
        SLOW, 4096, [*TOKENIZER, "--concurrency", "64", "--requests", "640", "--output-tokens", "64"],
        (
            Figure("TTFT p50 error", "ms", 0.3, error_ms("p50", 50)),
            Figure("TTFT p99 error", "ms", 1.0, error_ms("p99", 99)),
        ),
    ),
    (
        "c = 256, 64 tokens 10 ms apart",
        SLOW, 4096, [*TOKENIZER, "--concurrency", "256", "--requests", "2560", "--output-tokens", "64"],
        (
            Figure("TTFT p50 error", "ms", 0.3, error_ms("p50", 50)),
            Figure("TTFT p99 error", "ms", 1.5, error_ms("p99", 99)),
            Figure("client CPU per 100,000 chunks", "s", 1.0, cpu_per_100k),
            Figure("start to first request", "s", 0.5, startup_s),
        ),
    ),
    (
        "c = 100, 256 tokens 1 ms apart",
        FAST, 4096, [*TOKENIZER, "--concurrency", "100", "--requests", "1000", "--output-tokens", "256"],
        (
            Figure("chunks per second", "/s", 80_000, chunk_rate, at_least=True),
            Figure("TTFT p50 error", "%", 5.0, lambda r: abs(r.ttft("p50") / r.true_ttft(50) - 1) * 100),
            Figure("client CPU per 100,000 chunks", "s", 1.0, cpu_per_100k),
        ),
    ),
    (
        "open loop, 200/s constant",
        ("--ttft-ms", "20", "--tpot-ms", "2", "--prompt-tokens", "32"), 4096,
        ["--rate", "200", "--arrival", "constant", "--requests", "2000", "--output-tokens", "16"],
        (
            Figure("arrival rate error", "%", 0.3, rate_error(200)),
            Figure("schedule error p99", "ms", 4.0, schedule_error_ms(200)),
        ),
    ),
    (
        "open loop, 1000/s constant",
        ("--ttft-ms", "20", "--tpot-ms", "2", "--prompt-tokens", "32"), 4096,
        ["--rate", "1000", "--arrival", "constant", "--requests", "5000", "--output-tokens", "16"],
        (
            Figure("arrival rate error", "%", 0.3, rate_error(1000)),
            Figure("schedule error p99", "ms", 4.0, schedule_error_ms(1000)),
        ),
    ),
    (
        "60/s onto a 40/s server, cap of 8",
        ("--ttft-ms", "50", "--tpot-ms", "10", "--prompt-tokens", "32"), 8,
        ["--rate", "60", "--max-concurrency", "8", "--requests", "360", "--output-tokens", "16"],
        (Figure("TTFT p99 error from the plan", "%", 5.0, planned_ttft_error(60)),),
    ),
)  # fmt: skip


def measure(server: Sequence[str], slots: int, options: Sequence[str]) -> Run:
    """One `llmopt bench` against a fresh scripted server."""
    with running(*server, slots=slots) as url, tempfile.TemporaryDirectory() as results:
        argv = [*LLMOPT, "bench", "--url", url, *SHAPE, "--results", results, *options]
        started = time.monotonic_ns()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            sys.exit(f"llmopt failed: {done.stderr}")
        with urllib.request.urlopen(url.removesuffix("/v1") + "/scripted/log", timeout=60) as response:
            truth = json.load(response)
    return Run(json.loads(done.stdout), truth, started)


def help_cpu_ms(*words: str) -> float:
    """Processor time of `llmopt … --help`, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*LLMOPT, *words, "--help"], stdout=subprocess.DEVNULL, check=True, env=os.environ | {"COLUMNS": "100"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def line(case: str, name: str, unit: str, bound: float, values: Sequence[float], *, at_least: bool = False) -> str:
    middle = statistics.median(values)
    kept = middle >= bound if at_least else middle <= bound
    each = ", ".join(f"{v:.4g}" for v in values)
    sign = "≥" if at_least else "≤"
    return (
        f"| {case} | {name} | {sign} {bound:g} {unit} | {middle:.4g} {unit} ({each}) | {'yes' if kept else '**no**'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("figures.md"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name, server, slots, words, figures in CASES:
        runs = [measure(server, slots, words) for _ in range(options.repeats)]
        for figure in figures:
            values = [figure.value(run) for run in runs]
            rows.append(line(name, figure.name, figure.unit, figure.bound, values, at_least=figure.at_least))
            print(rows[-1], flush=True)
    for words, bound in (((), 150.0), (("bench",), 250.0)):
        values = [help_cpu_ms(*words) for _ in range(5)]
        rows.append(line(f"`llmopt {' '.join([*words, '--help'])}`", "CPU", "ms", bound, values))
        print(rows[-1], flush=True)
    machine = this_machine()
    head = [
        "# What llmopt's load client reports, against what is true",
        "",
        f"Written by `benchmarks/load_client/figures.py` on {datetime.date.today()}, on {machine.logical_cores} cores of "
        f"{machine.cpu}, client and server on the same machine. Median of {options.repeats} runs, each run in brackets.",
        "",
        "| load | figure | bound | measured | kept |",
        "|---|---|---|---|---|",
    ]
    options.out.write_text("\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
