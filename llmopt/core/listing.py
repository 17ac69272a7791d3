"""Which files of a results folder are records; listed in a process of its own while the caller imports what reads them.

Of 100,000 files the list takes a tenth of a second, as long as the imports, which is why this module has none that take time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

END = b"\0/"  # behind the last name: no name has a slash at its beginning


def record_files(folder: Path) -> list[str]:
    """Names relative to the folder, in order: runs of one machine are then in that of their start; hidden ones and machines'
    pages are none.
    """
    found: list[str] = []
    below = [""]
    while below:
        inside = below.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if name[-5:] == ".json":
                    found.append(inside + name)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(f"{inside}{name}/")
    return sorted(name for name in found if not name.endswith("machine.json"))


def free_cores() -> int:
    """How many processes can work at the same time; one where this one must not be forked, since a thread may hold a lock."""
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def listing(folder: Path) -> Callable[[], list[str]]:
    """Start to list; what it returns gives the names of ``record_files``, or raises what that would."""

    def here() -> list[str]:
        return record_files(folder)

    if free_cores() < 2 or not os.path.isdir(folder):  # noqa: PTH112 - a Path raises, which is for whoever asks for the names
        return here
    read, write = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no further process is to be had
        os.close(read)
        os.close(write)
        return here
    if not child:
        os.close(read)  # else it would wait for itself to read, where its parent is gone
        tell(folder, write)
    os.close(write)

    def heard() -> list[str]:
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
        with contextlib.suppress(ChildProcessError):  # whoever ignores SIGCHLD has none to wait for
            os.waitpid(child, 0)
        if not data.endswith(END):
            return here()
        return os.fsdecode(data[: -len(END)]).split("\0") if len(data) > len(END) else []

    return heard


def tell(folder: Path, write: int) -> None:
    """In the child: all names or no ``END``; it ends here, also when nobody listens any more."""
    try:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(os.fsencode("\0".join(record_files(folder))) + END)
    finally:
        os._exit(0)
