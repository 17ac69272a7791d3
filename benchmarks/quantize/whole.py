"""Every quantization of the bundled model with its proof, as one recipe: how long it takes in all.

python benchmarks/quantize/whole.py [--quants gptq-int8,nf4] [--proof-tokens 8192] [--limit-s 600]

The proof is as long as the demo's, half of what `llmopt quantize` takes unasked.  Writes whole.md; ends with status 1 when
one fails that should not, or when all of them took longer than the limit.
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

import yaml

HERE = Path(__file__).resolve().parent
# For models that were trained to them: of any other they leave nothing, and the proof says so.
REFUSED = {"gguf-tq1_0", "gguf-tq2_0", "gguf-q1_0"}


def main() -> None:
    from llmopt.quantize import METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quants", default=",".join(METHODS))
    parser.add_argument("--proof-tokens", type=int, default=8192)
    parser.add_argument("--limit-s", type=float, default=600)
    settings = parser.parse_args()
    names = settings.quants.split(",")
    with tempfile.TemporaryDirectory(prefix="whole-") as folder:
        recipe = Path(folder, "all.yaml")
        quality = {"tokens": settings.proof_tokens}
        recipe.write_text(
            yaml.safe_dump({"name": "all", "model": "builtin", "quantizations": names, "quality": quality})
        )
        began = time.monotonic()
        times = played(recipe, Path(folder, "out"))
        total_s = time.monotonic() - began
        made = {name: Path(folder, "out", name, "quality.json").exists() for name in names}
    wrong = [name for name in names if made[name] == (name in REFUSED)]
    words = {True: "proven", False: "refused, as it must be"}
    lines = [f"| {n} | {times.get(n, 0):.1f} | {'WRONG' if n in wrong else words[made[n]]} |" for n in names]
    about = f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}"
    head = f"{about}: {len(names)} quantizations of the bundled model, made and proven on"
    head += f" {settings.proof_tokens:,} tokens each, in {total_s:.0f} s."
    text = "\n".join(["# All of them", "", head, "", "| quantization | s | |", "|---|---:|---|", *lines, ""])
    (HERE / "whole.md").write_text(text)
    print(text)
    sys.exit(bool(wrong) or total_s > settings.limit_s)


def played(recipe: Path, out: Path) -> dict[str, float]:
    """Seconds of each quantization, from the lines that announce them."""
    argv = [sys.executable, "-m", "llmopt", "quantize", "--recipe", str(recipe), "-o", str(out)]
    starts: list[tuple[str, float]] = []
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("["):
                starts.append((line.split()[1], time.monotonic()))
    ends = [moment for _, moment in starts[1:]] + [time.monotonic()]
    return {name: end - start for (name, start), end in zip(starts, ends, strict=True)}


if __name__ == "__main__":
    main()
