"""Looking for processes that should be gone."""

from __future__ import annotations

import time

import psutil


def mentioning(word: str) -> list[psutil.Process]:
    """Live processes whose command line holds ``word``; zombies are dead."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if word in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def gone_within(word: str, seconds: float) -> bool:
    """Whether no process mentions ``word`` any more before the time is over."""
    deadline = time.monotonic() + seconds
    while mentioning(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
