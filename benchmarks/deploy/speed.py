"""How long ``llmopt deploy`` takes for each target: read, render, check, write; the engine is not booted.

    python benchmarks/deploy/speed.py RESULTS [--repeats 5] [--write]

RESULTS: runs of an engine that llmopt started (``llmopt bench``).  Goal: 2 s.  Which checks were made is in the table: they
take most of the time, and each is skipped where its program is not here.  ``--write`` puts it into speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TARGETS = ("shell", "systemd", "compose", "kubernetes", "rayserve")
WITHOUT_MONITORING = ("rayserve",)  # it is refused there


def deploy(results: str, target: str) -> tuple[float, Counter[str]]:
    """Seconds from outside, as a person would start it, and how many checks came out how."""
    with tempfile.TemporaryDirectory(prefix="llmopt-deploy-") as folder:
        out = Path(folder) / "out"
        argv = [sys.executable, "-m", "llmopt", "deploy", results, "-o", str(out), "--target", target, "--no-boot"]
        started = time.monotonic()
        subprocess.run(
            [*argv, *([] if target in WITHOUT_MONITORING else ["--monitoring"])],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.monotonic() - started
        checks = json.loads((out / "deployment.json").read_text())["checks"]
    return seconds, Counter(check["status"] for check in checks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    lines = ["| target | median s | longest s | checks |", "|---|---:|---:|---|"]
    for target in TARGETS:
        found = [deploy(options.results, target) for _ in range(options.repeats)]
        seconds = [s for s, _ in found]
        checks = ", ".join(f"{n} {status}" for status, n in sorted(found[0][1].items()))
        lines.append(f"| {target} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {checks} |")
        print(lines[-1], flush=True)
    head = f"`llmopt deploy --no-boot --monitoring`, {options.repeats} times each, on {os.cpu_count()} cores, load average before {load:.1f}.\n"
    if options.write:
        text = f"# How long deploy takes\n\n{head}Written by `speed.py --write`.\n\n" + "\n".join(lines) + "\n"
        Path(__file__).with_name("speed.md").write_text(text)


if __name__ == "__main__":
    main()
