"""What the client hands over: raw bytes and raw stamps, one ``Exchange`` per attempt, appended to a spool file.

The client writes and never reads; whoever wants numbers reads the same file, during the run or after it.  So the hot
path parses nothing, the client's memory does not grow with the run, and what was measured is on disk when a run is cut.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import msgspec

LENGTH_BYTES = 8


class Exchange(msgspec.Struct, array_like=True, frozen=True):
    """One attempt. ``user_ns`` are int64 stamps of the reads, ``kernel`` their raw ``SCM_TIMESTAMPING`` data (16 of 48
    bytes: seconds and nanoseconds of CLOCK_REALTIME; empty where the kernel gave none for some read), ``sizes`` uint32.
    """

    index: int
    attempt: int
    planned_ns: int
    due_ns: int
    sent_ns: int | None
    closed_ns: int
    error: str | None
    server_closed: bool
    user_ns: bytes
    kernel: bytes
    sizes: bytes
    raw: bytes


class ClockOffset(msgspec.Struct, array_like=True, frozen=True):
    """CLOCK_REALTIME − CLOCK_MONOTONIC at ``at_ns`` (monotonic), known to ± half of ``bracket_ns``."""

    at_ns: int
    offset_ns: int
    bracket_ns: int


class Summary(msgspec.Struct, array_like=True, frozen=True):
    """The end of a spool: what the client knows about itself. ``never_sent`` are (index, planned) of requests.

    ``waited_ns``: its long waits for a processor, where the system tells; ``realtime``: whether it had that priority.
    """

    start_ns: int
    end_ns: int
    cpu_s: float
    connections: int
    offsets: list[ClockOffset]
    never_sent: list[tuple[int, int]]
    stopped: str | None
    waited_ns: int | None = None
    realtime: bool = False


STAMP_BYTES = 48  # struct scm_timestamping


@dataclass(frozen=True)
class Finished:
    """An attempt as the hot path leaves it; ``exchange`` packs it when there is time."""

    index: int
    attempt: int
    planned_ns: int
    due_ns: int
    sent_ns: int | None
    closed_ns: int
    error: str | None
    server_closed: bool = False
    marks: array[int] = field(default_factory=lambda: array("q"))
    kernel: Sequence[bytes] = ()
    pieces: Sequence[bytes] = ()

    def exchange(self) -> Exchange:
        stamps = b"".join(self.kernel)
        whole = len(stamps) == STAMP_BYTES * len(self.kernel)
        return Exchange(
            index=self.index,
            attempt=self.attempt,
            planned_ns=self.planned_ns,
            due_ns=self.due_ns,
            sent_ns=self.sent_ns,
            closed_ns=self.closed_ns,
            error=self.error,
            server_closed=self.server_closed,
            user_ns=self.marks.tobytes(),
            kernel=stamps if whole else b"",
            sizes=array("I", map(len, self.pieces)).tobytes(),
            raw=b"".join(self.pieces),
        )


class Spool:
    """Appends length-prefixed messages to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.encoder = msgspec.msgpack.Encoder()

    def append(self, message: Exchange | Summary) -> None:
        """Raises OSError when the disk is full."""
        kind = b"S" if isinstance(message, Summary) else b"E"
        data = kind + self.encoder.encode(message)
        self.file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)


def read_spool(file: IO[bytes], *, summary_only: bool = False) -> Iterator[Exchange | Summary]:
    """Every whole message from where the file stands; a half-written last one is left for the next call."""
    exchange, summary = msgspec.msgpack.Decoder(Exchange), msgspec.msgpack.Decoder(Summary)
    while True:
        place = file.tell()
        prefix = file.read(LENGTH_BYTES + 1)
        size = int.from_bytes(prefix[:LENGTH_BYTES], "little") - 1
        kind = prefix[LENGTH_BYTES:]
        if kind == b"E" and summary_only:
            file.seek(size, os.SEEK_CUR)
            continue
        data = file.read(size) if kind else b""
        if not kind or len(data) < size:
            file.seek(place)
            return
        yield (summary if kind == b"S" else exchange).decode(data)
