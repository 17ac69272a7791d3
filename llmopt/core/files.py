"""Files that are whole or not there: write aside, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
    """A fresh folder beside ``target``, to be renamed to it. No name comes twice: a killed run's worker may still write."""
    aside = target.with_name(f".{target.name}{PARTIAL}{secrets.token_hex(4)}")
    with disk_errors(aside):
        aside.mkdir(parents=True)
    return aside


def partial_folders(target: Path) -> list[Path]:
    """What runs that made ``target``, or still make it, have beside it."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}{PARTIAL}*"))


@contextlib.contextmanager
def locked(path: Path, *, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``, which goes afterwards; ``wait`` is told before waiting, and may raise instead.

    The system frees a lock when its process ends, however it ends: a process id on disk would not tell, since ids are
    used again and every container has its own. A file system without locks is taken as it is.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with disk_errors(path):
            file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            if not free(file):
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            if still_at(file, path):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the one we waited for has removed it: a lock that nobody else would find
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def still_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def free(file: int) -> bool:
    """Lock an open file or folder unless another process has it; a file system without locks has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder below ``parent`` for the time of the ``with`` block; those that killed processes left there go first."""
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{prefix}*"):
            remove_if_left(left)
        unseen = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
        lock = os.open(unseen, os.O_RDONLY)
        free(lock)
        folder = unseen.rename(parent / unseen.name.removeprefix("."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_if_left(folder: Path) -> None:
    """Remove a scratch folder that no living process holds."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            if free(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


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
