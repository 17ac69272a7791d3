"""How long the client waited for a processor, and how it asks not to.

A read is stamped by the kernel, so what the client does late costs no latency, unless more has arrived by then: one read
then brings several chunks, and all have the stamp of the last.  On cores that an engine keeps busy Linux lets a process
of another session (its "autogroup") wait for up to 0.2 s, whatever its nice value: one request in twenty had its first token so
much later.  A process of real-time priority waits for nobody.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

SCHEDSTAT = "/proc/self/schedstat"  # of the main thread: nanoseconds run, nanoseconds waited, times run
LONG_NS = 10_000_000  # waited between two looks, that are 0.1 s apart
LONG_EACH_NS = 1_000_000  # and each time: many short waits are those of a client with much to do


def go_first() -> bool:
    """Ask for the lowest real-time priority; whether that is allowed (root, CAP_SYS_NICE, or a limit that root has raised)."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        return False
    return True


@dataclass(kw_only=True)
class Waits:
    """Adds up the long waits between its looks. ``long_ns`` stays ``None`` where the system does not tell."""

    source: str = SCHEDSTAT
    long_ns: int | None = None
    _last: tuple[int, int] | None = field(default=None, init=False)

    def look(self) -> None:
        now = self._told()
        if now is None:
            return
        if self._last is not None:
            waited, times = now[0] - self._last[0], now[1] - self._last[1]
            self.long_ns = (self.long_ns or 0) + (waited if waited > max(LONG_NS, LONG_EACH_NS * times) else 0)
        self._last = now

    def _told(self) -> tuple[int, int] | None:
        """Nanoseconds waited, and how often this process was given a processor; never, says a kernel that does not count."""
        with contextlib.suppress(OSError, ValueError), open(self.source, "rb", buffering=0) as file:  # noqa: PTH123 - ten times a second
            _, waited, times = map(int, file.read(100).split())
            return (waited, times) if times else None
        return None
