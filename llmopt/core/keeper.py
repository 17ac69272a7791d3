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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Run by its path, and isolated, this is a script that does not see what lies beside it.
# isort: off
if TYPE_CHECKING or __package__:
    from llmopt.core.segments import SharedSegments, remove_segments
else:
    sys.path.append(str(Path(__file__).parent))  # at the end: `statistics` is the standard library's
    from segments import SharedSegments, remove_segments
# isort: on

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
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


def say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # a parent that is gone has closed our input too
        print(line, flush=True)


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


def left_behind(session: int, temporary: str) -> list[int]:
    """Our own processes of a command that was started in a session of its own, or that were given its temporary folder.

    After a keeper that was killed nothing else names them: a process whose title was set (vLLM's engine) has no environment
    to read any more, and one that began a session of its own is in no other's.
    """
    mark = f"TMPDIR={temporary}\0".encode()
    return [pid for pid in own_processes() if session_of(pid) == session or (temporary and mark in environment_of(pid))]


def end_left_behind(session: int, temporary: str) -> None:
    for _ in range(100):
        left = left_behind(session, temporary)
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def session_of(pid: int) -> int:
    """0 for what is gone, and for a zombie, which cannot be ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Behind the last bracket, for a name may hold one: state, parent, group, session.
        state, _, _, session = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:4]
        return 0 if state == b"Z" else int(session)
    return 0


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
    shared = SharedSegments(tree, say)
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
