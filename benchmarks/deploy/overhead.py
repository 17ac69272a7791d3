"""What nginx with our configuration costs a request: time to first token and pace, through it and without it.

    python benchmarks/deploy/overhead.py [--users 1,4,16] [--pairs 9] [--requests 200] [--write]

The scripted server answers with a speed that is known; llmopt's own client measures it directly and through nginx, in turns,
whoever goes first changing with each pair.  Differences are of pairs, so that a machine that slows down for a while is no
cost of nginx's; the spread of the direct runs among themselves is printed beside them.  The scripted server's own lateness
is in both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the tests' own programs and deployment are used

from llmopt import demo  # noqa: E402
from llmopt.bench.prompts import load_tokenizer  # noqa: E402
from llmopt.bench.runner import RunResult, Target, Traffic, measure  # noqa: E402
from llmopt.core.domain import Workload  # noqa: E402
from llmopt.core.files import read_text  # noqa: E402
from llmopt.serve import scripted  # noqa: E402
from tests.programs import gateway  # noqa: E402
from tests.unit.deploy.make import deployment  # noqa: E402

TTFT_MS, TPOT_MS, TOKENS = 20, 5, 16
UNLIMITED = {"rate_limit_rps": 1e6}
COLUMNS = (
    ("users", "users"), ("TTFT p50 direct ms", "direct_ms"), ("through nginx ms", "through_ms"),
    ("difference ms (median of pairs)", "difference_ms"), ("lowest … highest", "range_ms"),
    ("ratio", "ratio"), ("p95 difference ms", "p95_difference_ms"), ("TPOT p50 difference ms", "tpot_difference_ms"),
    ("direct runs apart ms", "noise_ms"), ("load before", "load"),
)  # fmt: skip


def run(base_url: str, users: int, requests: int, salt: str) -> RunResult:
    workload = Workload(
        input_tokens=16, output_tokens=TOKENS, concurrency=users, requests=requests, warmup_requests=2 * users
    )
    traffic = Traffic(salt=salt, source=read_text(demo.CALIBRATION_TEXT), tokenizer=load_tokenizer(demo.MODEL))
    return measure(Target(base_url=base_url, model="scripted", usage_per_chunk=True), workload, traffic)


def measured(users: int, pairs: int, requests: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    speed = ("--ttft-ms", str(TTFT_MS), "--tpot-ms", str(TPOT_MS))
    with tempfile.TemporaryDirectory() as folder, scripted.running(*speed) as url:
        made = deployment(wishes=UNLIMITED, evidence={"concurrency": users})
        with gateway(Path(folder), made, [url.removeprefix("http://").removesuffix("/v1")]) as front:
            both: dict[str, list[RunResult]] = {"direct": [], "through": []}
            for pair in range(pairs):
                for way in ("direct", "through") if pair % 2 else ("through", "direct"):
                    base = url if way == "direct" else f"{front}/v1"
                    both[way].append(run(base, users, requests, f"{way}-{pair}"))
    return {"users": users, "load": load} | row(both["direct"], both["through"])


def row(direct: list[RunResult], through: list[RunResult]) -> dict[str, Any]:
    def ms(results: list[RunResult], name: str, key: str) -> list[float]:
        return [r.metrics[name][key] * 1e3 for r in results if (r.metrics[name] or {}).get(key) is not None]

    def apart(name: str, key: str) -> list[float]:
        return [b - a for a, b in zip(ms(direct, name, key), ms(through, name, key), strict=True)]

    first, ttft = ms(direct, "ttft_s", "p50"), apart("ttft_s", "p50")
    return {
        "direct_ms": statistics.median(first),
        "through_ms": statistics.median(ms(through, "ttft_s", "p50")),
        "difference_ms": statistics.median(ttft),
        "range_ms": f"{min(ttft):.2f} … {max(ttft):.2f}",
        "ratio": statistics.median(ms(through, "ttft_s", "p50")) / statistics.median(first),
        "p95_difference_ms": statistics.median(apart("ttft_s", "p95")),
        "tpot_difference_ms": statistics.median(apart("tpot_s", "p50")),
        "noise_ms": max(first) - min(first),
    }


def cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(cell(one[key]) for _, key in COLUMNS) + " |" for one in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,4,16")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = [measured(users, arguments.pairs, arguments.requests) for users in map(int, arguments.users.split(","))]
    print(table(rows))
    if arguments.write:
        about = (
            f"{arguments.pairs} pairs of runs of {arguments.requests} requests, {TOKENS} tokens {TPOT_MS} ms apart after"
            f" {TTFT_MS} ms, on {os.cpu_count()} cores that server, nginx and client share."
        )
        (HERE / "overhead.md").write_text(
            f"# nginx on the way\n\n{about}\nWritten by `overhead.py --write`; how is in its docstring.\n\n{table(rows)}\n"
        )


if __name__ == "__main__":
    main()
