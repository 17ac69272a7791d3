"""Runs one command and never outlives its parent: the process that stands between llmopt and an engine.

Standard library only, run as a script: ``python -I -S keeper.py LOG GRACE_S COMMAND…``.
On stdout it says ``pid N`` once, and ``exit CODE`` at the end.  When its standard
input closes, because the parent asked for that, crashed, or was killed with SIGKILL,
the command's whole tree gets SIGTERM, and SIGKILL after GRACE_S seconds.  On Linux
it adopts orphans, so a grandchild that left the process group is ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children() -> list[int]:
    """Ids of this process's own children (adopted orphans too); Linux only, else empty."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
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


def main() -> None:
    log, grace_s, argv = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
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
            )
    except OSError as error:
        print(f"failed {error}", flush=True)
        return
    print(f"pid {command.pid}", flush=True)
    while command.poll() is None:
        ready, _, _ = select.select([0, wake_read], [], [])
        if 0 in ready and not os.read(0, 1):
            break
        if wake_read in ready:
            os.read(wake_read, 4096)
    end_tree(command, grace_s)
    with contextlib.suppress(BrokenPipeError):
        print(f"exit {command.returncode}", flush=True)


if __name__ == "__main__":
    main()
