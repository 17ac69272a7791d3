"""Every quantization of the bundled model with its proof, one after the other: how long it takes in all.

python benchmarks/quantize/whole.py [--quants gptq-int8,nf4] [--limit-s 600]

Prints a line for each and the sum, writes whole.md, ends with status 1 when one fails or the sum is over the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of the two dozen GGUF types one of each family: they share a converter, a quantizer and a proof.
GGUF = ("gguf-q8_0", "gguf-q4_k_m", "gguf-iq4_xs")


def quants() -> list[str]:
    from llmopt.quantize import METHODS

    return [name for name in METHODS if not name.startswith("gguf-")] + [name for name in GGUF if name in METHODS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quants", default="")
    parser.add_argument("--limit-s", type=float, default=600)
    settings = parser.parse_args()
    names = settings.quants.split(",") if settings.quants else quants()
    lines, failed, began = list[str](), list[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="whole-") as folder:
        for name in names:
            started = time.monotonic()
            argv = [sys.executable, "-m", "llmopt", "quantize", "demo", "--quant", name, "-o", f"{folder}/{name}"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                failed.append(name)
                print(done.stderr[-600:], file=sys.stderr)
            lines.append(f"| {name} | {time.monotonic() - started:.1f} | {'failed' if done.returncode else 'proven'} |")
            print(lines[-1], flush=True)
    total_s = time.monotonic() - began
    print(f"{len(names)} in {total_s:.0f} s, load average {os.getloadavg()[0]:.1f}")
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}: "
    )
    head += f"{len(names)} quantizations of the bundled model, made and proven, in {total_s:.0f} s."
    text = "\n".join(["# All of them", "", head, "", "| quantization | s | |", "|---|---:|---|", *lines, ""])
    (HERE / "whole.md").write_text(text)
    sys.exit(bool(failed) or total_s > settings.limit_s)


if __name__ == "__main__":
    main()
