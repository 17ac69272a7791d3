"""The units of systemd, by ``systemd-analyze verify``; ``checks.py`` calls it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmopt.deploy.checks import Check, run, skipped

NAME = "systemd-analyze verify units"
NOT_HERE = re.compile(r"Command (\S+) is not executable: No such file or directory")


def check(folder: Path) -> Iterator[Check]:
    """It says nothing of good units; a program that is on the machine to come, and not here, is no fault of theirs."""
    if not shutil.which("systemd-analyze"):
        yield skipped(NAME, "systemd-analyze is not here (Debian: systemd)")
        return
    units = sorted(str(path.relative_to(folder)) for path in folder.glob("units/*"))
    end, told = run(["systemd-analyze", "verify", *(f"./{unit}" for unit in units)], folder=folder)
    faults = [line for line in told.splitlines() if line.strip() and not NOT_HERE.search(line)]
    if faults or (end and not NOT_HERE.search(told)):
        yield Check(name=NAME, status="failed", why="; ".join(faults)[:500] or f"it ended with {end}")
        return
    absent = sorted(set(NOT_HERE.findall(told)))
    yield Check(name=NAME, status="passed", why=f"without {', '.join(absent)}, not here" if absent else "")
