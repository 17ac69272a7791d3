"""The timed half of ``make gate``: a server of known speed against itself, and against one that decodes 8 % slower.

The first must not be a regression, on whatever machine this runs; the second must be one.  Both are `llmopt gate` as
people call it, each in a folder of its own that is gone afterwards.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from llmopt.serve.scripted import running

LOAD = ("--model", "truth", "--concurrency", "4", "--requests", "60", "--input-tokens", "32", "--output-tokens", "16")
SAME, SLOWER = "ttft=20,itl=5", "ttft=20,itl=5.4"
NO_REGRESSION, REGRESSION = (0, 4), (3,)


def gate(base: str, candidate: str) -> int:
    with tempfile.TemporaryDirectory(prefix="llmopt-gate-") as folder:
        sides = [f"{server}/x/{script}/v1" for script in (base, candidate)]
        return subprocess.run(
            [sys.executable, "-m", "llmopt", "gate", *sides, *LOAD, "--rounds", "8"], cwd=folder
        ).returncode


with running() as address:
    server = address.removesuffix("/v1")
    for candidate, wanted in ((SAME, NO_REGRESSION), (SLOWER, REGRESSION)):
        status = gate(SAME, candidate)
        if status not in wanted:
            sys.exit(f"error: {SAME} against {candidate} ended with {status}, and not with one of {wanted}")
