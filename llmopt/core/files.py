"""Files that are whole or not there: write aside, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmopt.core.errors import StoreError, UsageError

PARTIAL = ".partial-"


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a power cut, sees all of it or none. Raises StoreError."""
    aside = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a file system refuses at ``path`` into a StoreError with a next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"no space left on the disk of {path}", hint="free space, or name another folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(f"no permission to write {path}", hint="name a folder that you may write to") from error
        raise StoreError(f"cannot write {path}: {error.strerror or error}", hint="name another place") from error


def partial_folder(target: Path) -> Path:
    """A fresh folder beside ``target`` to be renamed to it; leftovers of dead processes are removed."""
    for left in partial_folders(target):
        if not alive(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)
    aside = target.with_name(f".{target.name}{PARTIAL}{os.getpid()}")
    with disk_errors(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    return aside


def partial_folders(target: Path) -> list[Path]:
    """What runs that made ``target``, or still make it, have beside it; each name ends with a process id."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}{PARTIAL}*"))


def alive(pid: str) -> bool:
    """Whether a process with this id runs (another user's counts)."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def folder_bytes(folder: Path, patterns: tuple[str, ...] = ("*",)) -> int:
    return sum(p.stat().st_size for pattern in patterns for p in folder.glob(pattern) if p.is_file())


def read_text(path: Path) -> str:
    """A text file, always UTF-8; raises UsageError for what is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint="name a text file") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})", hint="name a text file"
        ) from error
