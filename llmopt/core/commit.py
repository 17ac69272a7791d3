"""The commit that is measured: what git has checked out where llmopt is called, or what CI says it runs for."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

CI_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
DIRTY = "+"
PATIENCE_S = 2.0  # for git to say whether files were changed; a large checkout on a cold disk takes longer, and is not waited for


def commit_here(folder: Path | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The hash of the commit, with ``+`` where tracked files differ from it; empty where there is none.

    Outside a checkout (a job that has only the wheel) the commit that CI names.
    """
    with contextlib.suppress(OSError, ValueError):
        place = git_folder(folder or Path.cwd())
        if place is not None and (found := head(place[1])):
            return found + (DIRTY if changed(place[0]) else "")
    named = [environment.get(name, "").strip().lower() for name in CI_VARIABLES]
    return next((word for word in named if HASH.fullmatch(word)), "")


def git_folder(start: Path) -> tuple[Path, Path] | None:
    """The checkout that ``start`` is in, and its git folder: of a worktree or a submodule a file says where that is."""
    for folder in (start, *start.parents):
        entry = folder / ".git"
        if entry.is_dir():
            return folder, entry
        if entry.is_file():
            return folder, folder / entry.read_text().removeprefix("gitdir:").strip()
    return None


def head(git: Path) -> str:
    """What HEAD points to; empty before the first commit. Raises OSError, ValueError for a folder that is none of git's."""
    text = (git / "HEAD").read_text().strip()
    name = text.removeprefix("ref:").strip()
    if name == text:
        return text if HASH.fullmatch(text) else ""
    # A worktree has its own HEAD; its branches are those of the checkout that it was made from.
    shared = git / "commondir"
    home = git / shared.read_text().strip() if shared.is_file() else git
    for file in (git / name, home / name):
        if file.is_file():
            found = file.read_text().strip()
            return found if HASH.fullmatch(found) else ""
    packed = home / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")


def changed(checkout: Path) -> bool:
    """Whether git says that tracked files differ; not where it cannot say in time."""
    argv = ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(argv, cwd=checkout, capture_output=True, timeout=PATIENCE_S, check=False)
        return done.returncode == 0 and bool(done.stdout.strip())
    return False
