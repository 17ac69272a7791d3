"""One of two replicas is killed under load: what is lost, how soon it is over, when the alert fires.

    python benchmarks/deploy/kill.py [--runs 5] [--write]

The same as tests/end_to_end/test_deploy_gateway.py, which holds the bounds: two servers of llama.cpp with the bundled model
behind nginx as `llmopt deploy` writes it, Prometheus scraping every second, 20 requests a second for 12 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.end_to_end.test_deploy_gateway import KILLED_AFTER_S, RATE, SECONDS, kill_one_under_load  # noqa: E402

HEAD = (
    "| requests | in flight on the killed replica | failed | last failure after s | alert after s | load before |",
    "|---|---|---|---|---|---|",
)


def row() -> str:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        got = kill_one_under_load(Path(folder))
    figures = (
        len(got.result.traces),
        got.in_flight,
        len(got.failed),
        f"{got.recovery_s:.2f}",
        f"{got.alert_s:.1f}",
        f"{load:.1f}",
    )
    return "| " + " | ".join(map(str, figures)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = [*HEAD]
    for _ in range(arguments.runs):
        rows.append(row())
        print(rows[-1], flush=True)
    if arguments.write:
        about = f"{RATE:g} requests/s for {SECONDS:g} s, the kill after {KILLED_AFTER_S:g} s, on {os.cpu_count()} cores for everything."
        (HERE / "kill.md").write_text(
            "\n".join(["# A replica is killed", "", about, "Written by `kill.py --write`.", "", *rows, ""])
        )


if __name__ == "__main__":
    main()
