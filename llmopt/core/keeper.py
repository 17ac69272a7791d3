"""Runs one command and never outlives its parent: the process that stands between llmopt and an engine.

Standard library only, run as a script: ``python -I -S keeper.py LOG SETTINGS COMMAND…``, the settings as JSON.
On stdout it says ``pid N TEMPORARY`` once, ``segment INODE NAME`` for each that it finds, and ``exit CODE`` at the end.  When its standard
input closes, because the parent asked for that, crashed, or was killed with SIGKILL,
the command's whole tree gets SIGTERM, and SIGKILL after GRACE_S seconds.  On Linux
it adopts orphans, so a grandchild that left the process group is ended too.

With ``own_temporary`` the command gets a temporary folder of its own, and what it leaves there goes with it; so do its
segments of shared memory.  A killed vLLM leaves hundreds of megabytes in /dev/shm, and even one that ends well leaves its
sockets in /tmp (0.32).  At last it runs ``cleanup`` and removes ``files``: a container and its launch files outlive
llmopt's own death as little as a process does.  ``folders`` go where our input was closed before the command ended: else
the parent reads in them what the command left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SHARED_MEMORY = Path("/dev/shm")
# What Python's multiprocessing, NCCL and torch name their segments; never a file that somebody put there to be read.
SEGMENTS = ("psm_", "sem.mp-", "nccl-", "torch_")
LOOK_S, SOON_S = 1.0, 0.05  # between looks at them; the second after the kernel told of a new one
REST = 20  # times what a look takes: other programs may make hundreds a second
IN_CREATE, IN_MOVED_TO = 0x100, 0x80
CLEANUP_S = 20
LAUNCH = "launch"  # the folder of llmopt's own below which an engine gets one for its files


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children(process: int | str = "self") -> list[int]:
    """Ids of a process's children, by default our own (adopted orphans too); Linux only, else empty."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def tree() -> list[int]:
    """Every process below this one."""
    found = children()
    for pid in found:  # grows while it is walked
        found += children(pid)
    return found


class SharedSegments:
    """The segments that the command's tree made: new ones are looked at while it still holds them.

    At once where the kernel tells of them (``news``, Linux), for the tree may be killed the next moment, and once a second.
    """

    def __init__(self) -> None:
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
        for name, inode in new_segments(self.before | self.own.keys(), tree()).items():
            self.own[name] = inode
            say(f"segment {inode} {name}")

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


def say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # a parent that is gone has closed our input too
        print(line, flush=True)


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


def send(group: int, number: int) -> bool:
    """Signal the group and every child; False when nobody was left."""
    reached = False
    for target in [-group, *children()]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target, number)
            reached = True
    return reached


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_tree(command: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM to all, then SIGKILL until nobody is left."""
    send(command.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        command.poll()
        reap()
        if command.returncode is not None and not children():
            break
        time.sleep(0.02)
    for _ in range(100):
        command.poll()
        reap()
        if not send(command.pid, signal.SIGKILL) and not children():
            break
        time.sleep(0.02)


def remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def clean_up(command: Sequence[str], files: Iterable[str]) -> None:
    """Run the command that takes away what outlives the process, and remove its files."""
    if command:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CLEANUP_S, check=False)
    for name in files:
        with contextlib.suppress(
            OSError
        ):  # up to the first folder that holds something else, and none that is not ours
            Path(name).unlink(missing_ok=True)
            for folder in Path(name).parents:
                if folder.name == LAUNCH or LAUNCH not in folder.parts:
                    break
                folder.rmdir()


def users_of(temporary: str) -> list[int]:
    """Our own processes that were given this temporary folder: after a keeper that was killed, nothing else names them."""
    mark = f"TMPDIR={temporary}\0".encode()
    return [pid for pid in own_processes() if mark in environment_of(pid)]


def end_users_of(temporary: str) -> None:
    for _ in range(100):
        left = users_of(temporary)
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def own_processes() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def environment_of(pid: int) -> bytes:
    """Empty for what is gone, a zombie's too."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def main() -> None:
    log, settings, argv = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    temporary = tempfile.mkdtemp(prefix="llmopt-") if settings["own_temporary"] else None
    shared = SharedSegments()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides, by closing our input
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    try:
        with Path(log).open("ab", buffering=0) as output:
            command = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=in_child,
                env=os.environ | ({"TMPDIR": temporary} if temporary else {}),
            )
    except OSError as error:
        print(f"failed {error}", flush=True)
        remove(temporary)
        clean_up((), settings["files"])
        return
    say(f"pid {command.pid} {temporary or ''}")
    abandoned: list[str] = []
    ears = [0, wake_read, *([shared.news] if shared.news >= 0 else [])]
    while command.poll() is None:
        ready, _, _ = select.select(ears, [], [], shared.patience_s)
        if shared.news in ready:
            shared.hear()
        shared.look_when_due()
        if 0 in ready and not os.read(0, 1):
            abandoned = settings["folders"]
            break
        if wake_read in ready:
            os.read(wake_read, 4096)
    if (command.returncode or 0) < 0:
        shared.note_last()
    shared.look()
    end_tree(command, settings["grace_s"])
    remove_segments(shared.own)
    for folder in (temporary, *abandoned):
        remove(folder)
    clean_up(settings["cleanup"], settings["files"])
    say(f"exit {command.returncode}")


if __name__ == "__main__":
    main()
