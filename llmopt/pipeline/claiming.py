"""Where an artifact is made: who works on it, what killed or refused runs left, and what is there already.

One process at a time works on a folder ``out``, under its lock.  The work lies beside it and is renamed at the end, so
whatever kills us, nothing half-made has the artifact's name, and weights that were whole are taken up by the next start.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from llmopt.core.artifacts import open_artifact, read_manifest
from llmopt.core.domain import Artifact
from llmopt.core.errors import LlmoptError, ModelError, UsageError
from llmopt.core.files import disk_errors, locked, partial_folder, partial_folders, write_atomic

REFUSED = "refused.json"


def one_at_a_time(out: Path, wait: Callable[[], None]) -> AbstractContextManager[None]:
    """The lock of ``out``; ``wait`` is told before waiting for another process that makes it."""
    return locked(out.with_name(f".{out.name}.lock"), wait=wait)


def whole_weights(out: Path, key: str) -> Path | None:
    """A folder beside ``out`` that holds whole weights of this key: only their proof is missing, or was failed."""
    refused = [folder for folder in refused_folders(out, key) if (folder / REFUSED).exists()]
    return next((p for p in [*partial_folders(out), *refused] if holds(p, key) and os.access(p, os.W_OK)), None)


@contextmanager
def claimed(out: Path, key: str) -> Iterator[tuple[Path, bool]]:
    """The folder to work in, and whether it holds whole weights of this key; for whoever holds the lock.

    Whole weights survive an error too.  What is half made goes away; whole weights of another key stay for their own run.
    """
    whole = whole_weights(out, key)
    for left in partial_folders(out):
        if left != whole and not holds(left):
            shutil.rmtree(left, ignore_errors=True)
    aside = partial_folder(out)
    if whole is not None:
        whole.rename(aside)
        (aside / REFUSED).unlink(missing_ok=True)
    try:
        yield aside, whole is not None
    finally:
        if not holds(aside, key):
            shutil.rmtree(aside, ignore_errors=True)


def holds(folder: Path, key: str | None = None) -> bool:
    """Whether a folder holds whole weights of this key, or of any; what cannot be read holds none."""
    try:
        manifest = read_manifest(folder)
        return manifest is not None and key in (None, manifest["artifact"]["key"]) and bool(open_artifact(folder))
    except (LlmoptError, OSError):
        return False


def already_there(out: Path, key: str) -> Artifact | None:
    """The finished artifact of this key; raises UsageError when ``out`` holds anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UsageError(f"{out} is a file", hint="name a folder that does not exist yet: -o DIR")
    manifest = read_manifest(out)
    if manifest is None:
        if any(out.iterdir()):
            raise UsageError(f"{out} holds something else and is not overwritten", hint="name another folder: -o DIR")
        return None  # an empty folder is replaced by the rename
    if manifest["artifact"]["key"] != key:
        held = manifest["artifact"]["quantization"]["name"]
        raise UsageError(
            f"{out} holds {held} made from another model or with other settings or versions",
            hint="name another folder, or remove that one",
        )
    return open_artifact(out)


def keep_refused(aside: Path, out: Path, key: str, failure: ModelError, figures: dict[str, Any] | None) -> None:
    """Keep what failed its proof beside the wanted name, with the reason: hours of work are no rubbish."""
    target, other = refused_folders(out, key)
    if target.exists():  # of another key, or it would have been taken up
        target = other
        shutil.rmtree(target, ignore_errors=True)
    write_atomic(aside / REFUSED, json.dumps({"reason": failure.message, "quality": figures}, indent=1).encode())
    with disk_errors(target):
        aside.rename(target)
    kept = f"the weights are kept in {target}: remove it to have them made anew"
    failure.hint = f"{failure.hint}; {kept}" if failure.hint else kept


def refused_folders(out: Path, key: str) -> tuple[Path, Path]:
    """Where refused weights are kept: the usual place, and the one of this key where another's lie in that."""
    return out.with_name(f"{out.name}.refused"), out.with_name(f"{out.name}.refused-{key[:8]}")


def resume_folder(out: Path, key: str) -> Path:
    """Where a library that can resume keeps its work between starts."""
    return out.with_name(f".{out.name}.resume-{key}")


def logs_folder(out: Path) -> Path:
    return out.parent / "logs"
