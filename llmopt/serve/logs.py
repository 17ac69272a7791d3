"""The log of each start of a server: a file of its own, of which the last few are kept."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import asdict
from pathlib import Path

import psutil

from llmopt.core.domain import Artifact, ServeOptions, stable_hash

KEPT_OF_EACH, KEPT = 5, 100
STARTS = itertools.count(1)
LOG = re.compile(r"(?P<stem>.+)-(?P<pid>\d+)-\d+\.log")
OLDER = re.compile(r"(?P<stem>.+-[0-9a-f]{8,})-(?P<pid>\d+)\.log")  # as they were named before each start had a number


def log_stem(artifact: Artifact, options: ServeOptions) -> str:
    """The same for every load: what is asked of a server says nothing of how it starts."""
    return f"{artifact.label}-{options.backend}-{stable_hash([artifact.key, asdict(options)])[:8]}"


def own_log(stem: Path) -> Path:
    """A new ``STEM-PID-N.log`` for each start: what is told of one that failed names its log, which others must not write into.

    Of each stem the last few are kept, of a folder the last hundred, and those of servers that may still run.
    """
    written = {}
    for file in stem.parent.glob("*.log"):
        if told := LOG.fullmatch(file.name) or OLDER.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):  # somebody else tidies up here too
                written[file] = (file.stat().st_mtime, told["stem"], int(told["pid"]))
    latest = sorted(written, key=lambda file: written[file], reverse=True)
    mine = [file for file in latest if written[file][1] == stem.name]
    for file in {*mine[KEPT_OF_EACH:], *latest[KEPT:]}:
        number = written[file][2]
        if number == os.getpid() or not psutil.pid_exists(number):
            file.unlink(missing_ok=True)
    return stem.with_name(f"{stem.name}-{os.getpid()}-{next(STARTS)}.log")
