"""A load client in its own process, so that nobody else's work delays it: ``python -m llmopt.bench.shard SPOOL_FD``.

Standard input brings the plan (eight bytes of length, then MessagePack), then ``go NANOSECONDS``, with
``first`` behind it for real-time priority where that may be had, later perhaps
``enough`` (start nothing new) or ``stop``.  Standard output says ``ready``, then ten times a second how far it is, then
``end``.  When the parent dies, its end of the pipe closes, and the run is over.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import sys
from pathlib import Path

import msgspec

from llmopt.bench.client import LoadClient
from llmopt.bench.plan import BY_CALLER, Plan
from llmopt.bench.recording import LENGTH_BYTES, Spool
from llmopt.bench.waits import go_first


class Orders:
    """What the parent says, read without waiting."""

    def __init__(self) -> None:
        self.rest = b""

    def read(self, wait_s: float | None = 0) -> list[str] | None:
        """The whole lines that have come; ``None`` when the parent is gone."""
        if not select.select([0], [], [], wait_s)[0]:
            return []
        data = os.read(0, 4096)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.decode() for line in lines]


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def read_exactly(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        raise SystemExit(1)
    return data


def wake_punctually() -> None:
    """Linux lets a sleeper lie 50 µs longer than asked; a scheduler of requests wants none of it."""
    with contextlib.suppress(OSError), Path("/proc/self/timerslack_ns").open("w") as slack:
        slack.write("1")


def main() -> None:
    """Every failure is a word to the parent, which knows how to say it; with nobody left to hear it, silence."""
    try:
        work()
    except BrokenPipeError:
        raise SystemExit(1) from None
    except Exception as error:
        with contextlib.suppress(OSError):
            words = (
                error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            )
            say(f"failed {' '.join(words.split())}")
        raise


def allow_many_files() -> None:
    """A connection is a file, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft != hard else (soft, hard))


def work() -> None:
    wake_punctually()
    allow_many_files()
    spool = os.fdopen(int(sys.argv[1]), "wb", buffering=1 << 20)
    plan = msgspec.msgpack.decode(read_exactly(int.from_bytes(read_exactly(LENGTH_BYTES), "little")), type=Plan)
    orders = Orders()

    def tick(client: LoadClient) -> str | None:
        say(f"at {client.finished} {client.failed} {client.active} {len(client.backlog)}")
        for line in (found := orders.read()) or ():
            if line == "enough":
                client.enough()
            elif line == "stop":
                return BY_CALLER
        return "interrupted" if found is None else None

    client = LoadClient(plan, Spool(spool), tick=tick)
    client.warm()
    say("ready" if client.stopped is None else f"stopped {client.stopped}")
    while (lines := orders.read(None)) == []:
        pass
    if lines is None:
        raise SystemExit(1)
    start_ns, *first = lines[0].removeprefix("go ").split()
    client.run(int(start_ns), first=bool(first) and go_first())
    spool.flush()
    say("end")


if __name__ == "__main__":
    main()
