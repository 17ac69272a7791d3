"""How far the client's clock and the server's own are apart, what asking costs, and whether the parts of memory add up.

    python benchmarks/serving/agreement.py [--engines scripted,hf,vllm,vllm@DIR] [--users 1,4] [--runs 3] [--requests 64] [--write]

Each engine serves the bundled model, or the artifact behind its ``@``; runs that ask the server for its metrics take turns
with runs that do not.  The figures mean something on a machine that does nothing else: the load average before is printed
beside them.
``--write`` puts them into agreement.md, in the place of the same engine's and load's; what was found out about them is in README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.bench.runner import RunResult, Traffic, measure
from llmopt.core.domain import ServeOptions, Workload
from llmopt.core.errors import LlmoptError
from llmopt.core.files import read_text
from llmopt.pipeline.measuring import Subject, serving_case
from llmopt.pipeline.plans import open_case
from llmopt.report.progress import Reporter

HERE = Path(__file__).parent
EAGER = {"vllm": {"enforce_eager": True}}
SPEED = {"scripted": {"extra_args": ("--ttft-ms", "20", "--tpot-ms", "5")}}
FIXED_S, SHARE = 0.002, 0.02  # what an idle machine must keep
COLUMNS = (
    ("engine", "engine"), ("users", "users"), ("requests", "requests"), ("TTFT client ms", "client_ttft_ms"), ("server ms", "server_ttft_ms"),
    ("apart ms", "apart_ms"), ("allowed ms", "allowed_ms"), ("within", "within"), ("gap client ms", "client_itl_ms"),
    ("gap server ms", "server_itl_ms"), ("tok/s asked", "tps_asked"), ("not asked", "tps_not_asked"),
    ("page ms", "page_ms"), ("sampling % core", "sampling"), ("memory parts / sampled", "memory"), ("load before", "load"),
)  # fmt: skip


def run_once(subject: Subject, workload: Workload, number: int, *, ask: bool) -> RunResult:
    target = subject.target if ask else replace(subject.target, metrics_url=None)
    traffic = Traffic(
        salt=f"agreement-{number}-{ask}", source=read_text(demo.CALIBRATION_TEXT), tokenizer=subject.tokenizer
    )
    return measure(target, workload, traffic, warm=False)


def page_ms(subject: Subject) -> float | None:
    """How long the server takes over one page of metrics."""
    from llmopt.bench.server_side import server_of

    target = subject.target
    asked = server_of(target.metrics_url, target.metric_names, target.base_url, {})
    if asked is None or asked.first() is None:
        return None
    costs = []
    for _ in range(10):
        asked.read()
        costs.append(asked.cost_s * 1e3)
    asked.close()
    return statistics.median(costs)


def measured(name: str, users: int, runs: int, requests: int) -> dict[str, Any]:
    """Medians over the runs of one engine under one load."""
    engine, _, place = name.partition("@")
    artifact = Path(place) if place else demo.MODEL
    options = {**EAGER.get(engine, {}), **SPEED.get(engine, {})}
    workload = Workload(input_tokens=64, output_tokens=32, concurrency=users, requests=requests)
    case = open_case(artifact, ServeOptions(backend=engine, max_num_seqs=max(4, users), **options), workload)
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_case(case, Reporter(quiet=True), results=Path(folder)) as subject,
    ):
        asked, not_asked = [], []
        for number in range(runs):
            for ask in (True, False) if number % 2 else (False, True):  # whoever goes first has no advantage
                (asked if ask else not_asked).append(run_once(subject, workload, number, ask=ask))
        page = page_ms(subject)
    shown = f"{engine}, {artifact.name}" if place else engine
    return row(shown, users, asked, not_asked) | {"requests": requests, "page_ms": page, "load": load}


def row(engine: str, users: int, asked: list[RunResult], not_asked: list[RunResult]) -> dict[str, Any]:
    ttft = [r.server.get("agreement", {}).get("ttft", {}) for r in asked]
    itl = [r.server.get("agreement", {}).get("itl", {}) for r in asked]
    client, server = median(t.get("client_s") for t in ttft), median(t.get("server_s") for t in ttft)
    apart = median(abs(t["client_s"] - t["server_s"]) for t in ttft if t.get("server_s") is not None)
    allowed = None if server is None else FIXED_S + SHARE * server
    memory = asked[-1].memory
    parts = [memory[f"{p}_bytes"] for p in ("weights", "kv_cache", "activation", "rest")]
    total = memory["total_bytes"]
    return {
        "engine": engine,
        "users": users,
        "client_ttft_ms": ms(client),
        "server_ttft_ms": ms(server),
        "apart_ms": ms(apart),
        "allowed_ms": ms(allowed),
        "within": None if apart is None or allowed is None else "yes" if apart <= allowed else "no",
        "client_itl_ms": ms(median(t.get("client_s") for t in itl)),
        "server_itl_ms": ms(median(t.get("server_s") for t in itl)),
        "tps_asked": median(r.metrics["output_tps_whole"] for r in asked),
        "tps_not_asked": median(r.metrics["output_tps_whole"] for r in not_asked),
        "sampling": 100 * (median(r.telemetry["sampling_cores"] for r in asked) or 0.0),
        "memory": None if None in parts or not total else f"{sum(parts) / 2**20:.0f} / {total / 2**20:.0f} MiB",
    }


def median(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def cell(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(one[key]) for _, key in COLUMNS) + " |" for one in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="scripted,hf,vllm")
    parser.add_argument("--users", default="1,4")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for engine in arguments.engines.split(","):
        for users in map(int, arguments.users.split(",")):
            try:
                rows.append(measured(engine, users, arguments.runs, arguments.requests))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
            except LlmoptError as error:
                print(f"{engine}: {error.message}", file=sys.stderr)
    if arguments.write:
        file = HERE / "agreement.md"
        file.write_text(page(with_known(table(rows).splitlines(), file)))


def with_known(lines: list[str], file: Path) -> str:
    """The rows of engines and loads that were measured before, those that were measured now in their place."""
    old = [line for line in file.read_text().splitlines() if line.startswith("| ")][1:] if file.exists() else []
    rows = {tuple(line.split(" | ")[:2]): line for line in [*old, *lines[2:]]}
    return "\n".join([*lines[:2], *rows.values()])


def page(text: str) -> str:
    return (
        f"# Client against server\n\n{(__doc__ or '').splitlines()[0]}\n\n"
        f"{os.cpu_count()} cores; means of requests of 64 tokens in and 32 out, medians of the runs. Allowed is"
        f" {FIXED_S * 1e3:g} ms + {SHARE:.0%}, for an idle machine: `load before` says how idle this one was.\n"
        f"Written by `agreement.py --write`; what was found out about it is in [README.md](README.md).\n\n{text}\n"
    )


if __name__ == "__main__":
    main()
