"""Segments of shared memory that a tree of processes makes, so that none is left when it is killed.

Standard library only: part of ``keeper.py``, which runs as a script.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# What Python's multiprocessing, NCCL and torch name their segments; never a file that somebody put there to be read.
SEGMENTS = ("psm_", "sem.mp-", "nccl-", "torch_")
LOOK_S, SOON_S = 1.0, 0.05  # between looks at them; the second after the kernel told of a new one
REST = 20  # times what a look takes: other programs may make hundreds a second
IN_CREATE, IN_MOVED_TO = 0x100, 0x80


class SharedSegments:
    """The segments that the command's tree made: new ones are looked at while it still holds them.

    At once where the kernel tells of them (``news``, Linux), for the tree may be killed the next moment, and once a second.
    """

    def __init__(self, tree: Callable[[], list[int]], say: Callable[[str], None]) -> None:
        self.tree, self.say = tree, say
        self.before, self.own, self.news = set(segments()), dict[str, int](), watched(SHARED_MEMORY)
        self.soonest, self.due, self.again = 0.0, 0.0, False
        self.looked_at = time.time()

    @property
    def patience_s(self) -> float:
        return max(0.0, self.due - time.monotonic())

    def hear(self) -> None:
        """Take what the kernel told, and look soon; and again, for a segment may be handed over after it was made."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.news, 65536):
                pass
        self.due, self.again = min(self.due, self.soonest), True

    def look_when_due(self) -> None:
        began = time.monotonic()
        if began < self.due:
            return
        self.look()
        self.soonest = began + max(SOON_S, REST * (time.monotonic() - began))
        self.due, self.again = self.soonest if self.again else max(self.soonest, began + LOOK_S), False

    def look(self) -> None:
        """Note them, and tell the parent: it removes them where this process is killed."""
        self.looked_at = time.time()
        for name, inode in new_segments(self.before | self.own.keys(), self.tree()).items():
            self.own[name] = inode
            self.say(f"segment {inode} {name}")

    def note_last(self) -> None:
        """What the command made since the last look, and did not live to be seen with."""
        self.own |= late_segments(self.before | self.own.keys(), self.looked_at)


def watched(folder: Path) -> int:
    """A descriptor that has something to read when a file appears there; -1 where the kernel does not tell."""
    if sys.platform != "linux":
        return -1
    library = ctypes.CDLL(None)
    news: int = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if news >= 0:
        library.inotify_add_watch(news, os.fsencode(folder), IN_CREATE | IN_MOVED_TO)
    return news


def new_segments(known: Set[str], processes: list[int]) -> dict[str, int]:
    """Name → inode of the segments that these processes hold, but for those that are known."""
    found = {name: inode for name, inode in segments().items() if name not in known}
    if not found:
        return {}
    held = mapped(processes) | opened(processes)
    return {name: inode for name, inode in found.items() if inode in held}


def late_segments(known: Set[str], since: float) -> dict[str, int]:
    """Name → inode of our user's segments that were made at ``since`` (Unix time) or later, but for those that are known.

    Whose they are nobody can tell any more.  Of a tree that was killed in that moment, if nobody holds them.
    """
    found = {}
    for name, inode in segments().items():
        with contextlib.suppress(OSError):
            status = (SHARED_MEMORY / name).stat()
            if name not in known and status.st_uid == os.getuid() and status.st_ctime >= since:
                found[name] = inode
    return found


def remove_segments(own: Mapping[str, int]) -> None:
    """Those that are still there and that no other process has taken up."""
    left = own.items() & segments().items()
    if left:
        everybody = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        used = mapped(everybody) | opened(everybody)
        for name, inode in left:
            if inode not in used:
                (SHARED_MEMORY / name).unlink(missing_ok=True)


def segments() -> dict[str, int]:
    """Name → inode of what may be a segment."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHARED_MEMORY):
            if entry.name.startswith(SEGMENTS):
                found[entry.name] = entry.inode()
    return found


def mapped(processes: list[int]) -> set[int]:
    """Inodes in shared memory that any of these processes maps.

    Not names: who makes a semaphore maps it under the name that it had before it was linked to its own.
    """
    found = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
            found |= {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
    return found


def opened(processes: list[int]) -> set[int]:
    """Inodes of files in shared memory that any of these processes has open: its maker has, before it can be mapped."""
    found = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # the link first: files of a dead file server hang
                    if SHARED_MEMORY in Path(entry).readlink().parents:
                        found.add(entry.stat().st_ino)
    return found
