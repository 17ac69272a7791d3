"""Live gates on the scripted server, whose truth is known: 6 % slower decoding is found, the same address twice is not.

    python benchmarks/gate/live.py [--gates 100] [--losses 5] [--peers DIR] [--write [FILE]]

The loss is the command of the issue, as it stands.  The false alarms are smaller gates (``SMALL``), so that a hundred of
them take minutes.  ``--peers DIR`` (peers.py): llmtest-perf measures the same two addresses itself, for as long as one of our
gates takes; inference-doctor measures nothing, and is handed the runs of ours.  ``--write`` writes live.md, or FILE beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from outcomes import line
from peers import PERCENT_3, PERCENT_10, VERSIONS, Peers, Setting, install
from scenarios import NAMES

from llmopt.core.run_index import load_runs
from llmopt.gate.blocks import Reading
from llmopt.pipeline.experiment import counts_beside, reading_of
from llmopt.serve.scripted import running

TABLE = Path(__file__).with_name("live.md")
LOAD = ("--model", "truth", "--concurrency", "8", "--input-tokens", "32", "--output-tokens", "16")
FULL = ("--requests", "60", "--rounds", "6")
SMALL = ("--requests", "24", "--rounds", "5")
LIMIT_S = 30
DOCTORS = (
    Setting("inference-doctor", "default (10 %, 90 %)", {}),
    Setting("inference-doctor", "2 %, 98 %", {"regression_percent": 2.0, "confidence": 0.98}),
)
PERFS = (("its template (10 %)", PERCENT_10), ("3 %", PERCENT_3))
PERF_SECONDS = 12  # of both sides at once, as it measures: a gate of ours has about as much of the server


@dataclass(frozen=True)
class Gate:
    """One call of ``llmopt gate``, with the runs that it measured."""

    exit_status: int
    seconds: float
    words: str
    base: list[Reading]
    candidate: list[Reading]


@dataclass(frozen=True)
class Line:
    what: str
    how: str
    gates: int
    came_out: str
    wanted: str


def address(url: str, itl_ms: float) -> str:
    return f"{url.removesuffix('/v1')}/x/ttft=30,itl={itl_ms:g}/v1"


def gate(base: str, candidate: str, effort: Sequence[str]) -> Gate:
    """In a results folder of its own, so that nothing is taken up."""
    with tempfile.TemporaryDirectory(prefix="llmopt-gate-") as folder:
        argv = [sys.executable, "-m", "llmopt", "gate", base, candidate, *LOAD, *effort, "--json", "--results", folder]
        started = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if not done.stdout:
            return Gate(done.returncode, seconds, done.stderr.strip(), [], [])
        document = json.loads(done.stdout)
        runs = {run.run_id: run for run in load_runs(Path(folder))}
        named = document["cases"][0]["runs"]
        sides = [
            [reading_of(runs[i], counts_beside(runs[i], Path(folder))) for i in named[side]]
            for side in ("base", "candidate")
        ]
    return Gate(done.returncode, seconds, document["words"], *sides)


def many(count: int, base: str, candidate: str, effort: Sequence[str]) -> list[Gate]:
    found = []
    for number in range(count):
        found.append(gate(base, candidate, effort))
        print(f"{number + 1}: {found[-1].exit_status} {found[-1].seconds:.1f} s {found[-1].words}", flush=True)
    return found


def told(what: str, effort: Sequence[str], found: Sequence[Gate], wanted: str) -> Line:
    statuses = Counter(g.exit_status for g in found)
    seconds = [g.seconds for g in found]
    shown = ", ".join(f"{count} × exit {status}" for status, count in sorted(statuses.items()))
    times = f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)"
    return Line(what, f"`{' '.join(effort)}`", len(found), f"{shown}; {times}", wanted)


def doctor_lines(peers: Peers, what: str, found: Sequence[Gate]) -> list[Line]:
    """inference-doctor on the runs that each gate measured, handed over as files."""
    measured = [g for g in found if g.base and g.candidate]
    return [
        Line(
            f"inference-doctor, {setting.words}: {what}",
            "the runs of ours",
            len(measured),
            counted(peers.judge(setting, g.base, g.candidate, NAMES)["status"] for g in measured),
            "",
        )
        for setting in DOCTORS
    ]


def perf_line(
    python: Path, what: str, words: str, thresholds: dict[str, float], sides: tuple[str, str], n: int
) -> Line:
    """llmtest-perf's own command, which puts load on both addresses at the same time."""
    found = [llmtest_perf(python, sides, thresholds) for _ in range(n)]
    how = f"`llmtest-perf compare`, {PERF_SECONDS} s, both sides at once"
    return Line(f"llmtest-perf, {words}: {what}", how, n, counted(found), "")


def llmtest_perf(python: Path, sides: tuple[str, str], thresholds: dict[str, float]) -> str:
    config = {
        "targets": {
            name: {"base_url": url, "model": "truth"}
            for name, url in zip(("baseline", "candidate"), sides, strict=True)
        },
        "workload": {
            "duration_seconds": PERF_SECONDS,
            "max_concurrency": 8,
            "prompt_sets": [{"name": "words", "weight": 1, "prompts": ["one two three four " * 8]}],
        },
        "request": {"max_tokens": 16},
        "comparison": thresholds,
    }
    with tempfile.TemporaryDirectory(prefix="llmtest-perf-") as folder:
        report = Path(folder, "report.json")
        file = Path(folder, "perf.yaml")
        file.write_text(yaml.safe_dump(config | {"reporting": {"json": str(report)}}))
        environment = os.environ | {"OPENAI_API_KEY": "none"}
        command = [str(python.with_name("llmtest-perf")), "compare", str(file), "--quiet"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return f"exit {done.returncode}"


def counted(found: object) -> str:
    counts = Counter(found)  # type: ignore[call-overload]
    return ", ".join(f"{count} × {status}" for status, count in sorted(counts.items())) or "–"


def table(lines: Sequence[Line], *, peers: bool) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    heads = ("what", "how", "gates", "came out", "wanted")
    rows = [line(heads), line(["---"] * len(heads))]
    rows += [line((one.what, one.how, str(one.gates), one.came_out, one.wanted)) for one in lines]
    return "\n".join(
        [
            "# Live gates on the scripted server",
            "",
            f"{datetime.date.today()}, {os.cpu_count()} cores, server and clients on them together; `{' '.join(LOAD)}`."
            f" Written by `live.py {'--peers DIR ' if peers else ''}--write`; load average at the end {os.getloadavg()[1]:.1f}."
            + (f" Beside us {versions}." if peers else ""),
            "",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=100)
    parser.add_argument("--losses", type=int, default=5)
    parser.add_argument("--peers", type=Path, metavar="DIR")
    parser.add_argument("--write", nargs="?", const=TABLE.name, metavar="FILE")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running())
        same, slower = address(url, 5), address(url, 5.3)
        lost = many(options.losses, same, slower, FULL)
        whole = many(1, same, same, FULL)
        alike = many(options.gates, same, same, SMALL)
        lines = [
            told("6 % slower decoding", FULL, lost, f"exit 3 in at most {LIMIT_S} s"),
            told("the same address twice", FULL, whole, "exit 0 or 4"),
            told("the same address twice", SMALL, alike, "exit 0 or 4; 3 at most once in 100"),
        ]
        if options.peers:
            python = install(options.peers)
            peers = stack.enter_context(Peers(python, gates=0))
            lines += doctor_lines(peers, "6 % slower decoding", lost)
            lines += doctor_lines(peers, "the same address twice", alike)
            nobody = "http://127.0.0.1:9/v1"
            for words, thresholds in PERFS:
                for what, sides in (
                    ("6 % slower decoding", (same, slower)),
                    ("the same address twice", (same, same)),
                    ("nobody answers on either side", (nobody, nobody)),
                ):
                    lines.append(perf_line(python, what, words, thresholds, sides, options.losses))
                    print(lines[-1], flush=True)
    text = table(lines, peers=bool(options.peers))
    print(text)
    if options.write:
        TABLE.with_name(options.write).write_text(text)


if __name__ == "__main__":
    main()
