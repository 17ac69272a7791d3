"""The folders of our environments: what was done in each, who works on it, how large it is.

A folder under ``home()/envs`` is ours when it holds our journal: ``MARKER`` once it is finished, ``PROGRESS`` while
it is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmopt.core import files
from llmopt.core.blueprints import platform_tag
from llmopt.core.errors import LlmoptError, MissingEnvironment
from llmopt.core.files import disk_errors, write_atomic
from llmopt.core.interpreters import MARKER, PROGRESS, Environment, ask, home


@dataclass(kw_only=True)
class Journal:
    """What was done in a folder: step → digest of its inputs, and the optional steps left out, with the reason."""

    name: str
    python: str
    build: bool = False
    lock: str | None = None
    steps: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path, file: str) -> None:
        write_atomic(folder / file, json.dumps(asdict(self), indent=1).encode())


FIELDS = ("name", "build", "lock", "steps", "left_out")


def folder_of(name: str) -> Path:
    return home() / "envs" / name


def journal_of(folder: Path) -> Journal | None:
    """What our file in this folder says, or ``None`` when there is none."""
    for file in (PROGRESS, MARKER):
        try:
            kept = json.loads((folder / file).read_text())
            python = kept.get("python") or platform_tag().rpartition("py")[2]
            return Journal(**{"name": folder.name, **{k: v for k, v in kept.items() if k in FIELDS}, "python": python})
        except OSError:
            continue
        except (ValueError, AttributeError):  # torn by a power cut: ours all the same, and nothing in it counts
            return Journal(name=folder.name, python="")
    return None


def runs(environment: Environment, python: str) -> bool:
    """Whether it runs, and is still the Python that its packages were installed for."""
    with contextlib.suppress(MissingEnvironment):
        return ask(environment, "import sys; print(*sys.version_info[:2], sep='.')").strip() == python
    return False


def locked(name: str, *, wait: Callable[[], None] | None) -> AbstractContextManager[None]:
    """Hold the lock of this name; ``wait`` is told before waiting, without it LlmoptError is raised instead."""

    def refuse() -> None:
        raise LlmoptError(f"{name} is being made by another llmopt", hint="stop it first")

    return files.locked(home() / "envs" / f".{name}.lock", wait=wait or refuse)


def existing(path: Path) -> Path:
    return next(p for p in [path, *path.parents] if p.exists())


def size_bytes(folder: Path) -> int:
    """Bytes of the files below ``folder``; links count nothing."""
    total, folders = 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def remove_folder(folder: Path) -> None:
    """Out of the way first: what is half removed when we are killed is no environment."""
    for left in folder.parent.glob(f".{folder.name}.removed-*"):
        shutil.rmtree(left, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.removed-{os.getpid()}")
    with disk_errors(folder):
        folder.rename(aside)
        shutil.rmtree(aside)
